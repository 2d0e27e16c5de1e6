package org.example.efficientformer

import kotlin.time.Duration
import kotlin.time.DurationUnit
import kotlin.time.measureTimedValue

/** How many of the latest runs the median is of. */
private const val LATEST = 15

/** Times of a loaded model's runs: the first apart, as it prepares memory and kernels, of the others the median. */
class Timing {
    private var first: Duration? = null
    private val others = ArrayDeque<Duration>()

    fun <T> measure(run: () -> T): T {
        val (value, time) = measureTimedValue(run)
        if (first == null) first = time else others.addLast(time)
        if (others.size > LATEST) others.removeFirst()
        return value
    }

    /** "12.3 ms, the first 80.1 ms". */
    override fun toString(): String {
        val median = others.sorted().getOrNull(others.size / 2)
        return listOfNotNull(median?.let(::text), first?.let { "the first ${text(it)}" }).joinToString()
    }

    private fun text(time: Duration) = time.toString(DurationUnit.MILLISECONDS, 1)
}

package org.example.efficientformer

import android.content.res.AssetManager
import org.json.JSONObject

/** The class names, from the exporter's report, which must describe the model that [Model] describes. */
fun readLabels(assets: AssetManager): List<String> {
    val report = JSONObject(assets.open(Model.REPORT).bufferedReader().use { it.readText() })
    val found = "${tensor(report, "inputs")} to ${tensor(report, "outputs")}"
    val expected = "${Model.INPUT} ${Model.INPUT_TYPE} [1,${Model.HEIGHT},${Model.WIDTH},${Model.CHANNELS}] to " +
        "${Model.OUTPUT} ${Model.OUTPUT_TYPE} [1,${Model.CLASSES}]"
    check(found == expected) { "${Model.REPORT} says $found and Model.kt $expected. Change Model.kt." }
    val labels = report.getJSONArray("labels")
    return List(labels.length(), labels::getString)
}

private fun tensor(report: JSONObject, end: String): String {
    val tensor = report.getJSONArray(end).getJSONObject(0)
    return "${tensor.getString("name")} ${tensor.getString("dtype")} ${tensor.getJSONArray("shape")}"
}

package org.example.efficientformer

import android.content.res.AssetManager
import org.json.JSONObject

/** The class names of [Model], from the exporter's report, which must describe what [Model] describes. */
fun readLabels(assets: AssetManager): List<String> = labels(
    assets,
    Model.REPORT,
    "${Model.INPUT} ${Model.INPUT_TYPE} [1,${Model.HEIGHT},${Model.WIDTH},${Model.CHANNELS}] to " +
        "${Model.OUTPUT} ${Model.OUTPUT_TYPE} [1,${Model.CLASSES}]",
)

/** Those of [SegmentationModel], likewise. */
fun readSegmentationLabels(assets: AssetManager): List<String> {
    val size = "${SegmentationModel.HEIGHT},${SegmentationModel.WIDTH}"
    return labels(
        assets,
        SegmentationModel.REPORT,
        "${SegmentationModel.INPUT} ${SegmentationModel.INPUT_TYPE} [1,$size,${SegmentationModel.CHANNELS}] to " +
            "${SegmentationModel.OUTPUT} ${SegmentationModel.OUTPUT_TYPE} [1,$size,${SegmentationModel.CLASSES}]",
    )
}

private fun labels(assets: AssetManager, file: String, expected: String): List<String> {
    val report = JSONObject(assets.open(file).bufferedReader().use { it.readText() })
    val found = "${tensor(report, "inputs")} to ${tensor(report, "outputs")}"
    check(found == expected) { "$file says $found and Model.kt $expected. Change Model.kt." }
    val labels = report.getJSONArray("labels")
    return List(labels.length(), labels::getString)
}

private fun tensor(report: JSONObject, end: String): String {
    val tensor = report.getJSONArray(end).getJSONObject(0)
    return "${tensor.getString("name")} ${tensor.getString("dtype")} ${tensor.getJSONArray("shape")}"
}

"""KerasHub's classes: the network's own values, presets that keep them, and KerasHub's tasks on the backbone."""

import json
import os
import subprocess

import forked
import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from hub_server import HubServer
from keras.ops import convert_to_numpy as to_numpy
from networks import make_loud
from project import HANG, ROOT

import keras_efficientformer as kef
from keras_efficientformer import hub
from keras_efficientformer.conversion import to_state_dict, write_checkpoint
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.variants import VARIANTS_V2

SHAPE = (64, 96, 3)
V1 = {"depths": (1, 1, 1, 2), "widths": (8, 16, 16, 32), "num_meta3d": 1}
V2 = {"depths": (1, 1, 2, 2), "widths": (8, 16, 16, 32), "num_attention": 1, "mlp_ratios": [[4], [4], [4, 4], [4, 4]]}
FAMILIES = {"first family": (kef.EfficientFormer, V1), "second family": (kef.EfficientFormerV2, V2)}
RAW = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype("float32")
IMAGES = kef.preprocess_input(RAW)


def arrays(outputs):
    return (
        {name: to_numpy(value) for name, value in outputs.items()} if isinstance(outputs, dict) else to_numpy(outputs)
    )


def logits(classifier, raw):
    """What `predict` answers, without the graph that it compiles first."""
    return to_numpy(classifier(classifier.preprocessor(raw)))


def loud_backbone(shape=V1, image_shape=SHAPE):
    return make_loud(hub.EfficientFormerBackbone(**shape, image_shape=image_shape))


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    """A classifier of this package with two heads, loud."""
    function, shape = FAMILIES[request.param]
    return make_loud(function(**shape, input_shape=SHAPE, classes=5, classifier_activation=None))


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    write_checkpoint(path, to_state_dict(network))
    return path


@pytest.fixture(scope="module")
def classifier(checkpoint):
    return hub.EfficientFormerImageClassifier.from_preset(checkpoint)


@pytest.fixture(scope="module")
def preset(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    classifier.save_to_preset(folder)
    return str(folder)


def test_feature_maps_are_the_networks(network, classifier):
    backbone = classifier.backbone
    expected = arrays(kef.feature_pyramid(network)(IMAGES))
    found = arrays(keras.Model(backbone.input, backbone.pyramid_outputs)(IMAGES))
    assert {level: values.shape[1:3] for level, values in found.items()} == {
        f"P{i}": (64 // 2**i, 96 // 2**i) for i in range(2, 6)
    }
    for level, values in expected.items():
        np.testing.assert_array_equal(found[level], values)
    features = keras.Model(network.input, network.get_layer("norm").output)(IMAGES)
    np.testing.assert_array_equal(to_numpy(backbone(IMAGES)), to_numpy(features))


def test_classifier_has_the_networks_logits(network, classifier):
    """One head has the mean of the two heads' weights, and the preprocessor does what `preprocess_input` does."""
    expected = to_numpy(network(IMAGES))
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(classifier.predict(RAW, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(classifier.preprocessor(RAW)), IMAGES, atol=1e-6)


def test_exports_take_the_classifier(network, classifier, tmp_path):
    """A functional model of its input and output, in both formats."""
    model = keras.Model(classifier.input, classifier.output)
    expected = to_numpy(network(IMAGES))
    tflite, coreml = tmp_path / "hub.tflite", tmp_path / "hub.mlpackage"
    export_tflite(model, tflite)
    export_coreml(model, coreml, precision="float32")
    for file in (LiteRTModel(tflite), CoreMLModel(coreml)):
        (found,) = file.predict(RAW).values()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_backbone_preset(classifier, tmp_path):
    backbone = classifier.backbone
    backbone.save_to_preset(tmp_path)
    for opened in (
        hub.EfficientFormerBackbone.from_preset(tmp_path),
        keras_hub.models.Backbone.from_preset(str(tmp_path)),
    ):
        assert type(opened) is hub.EfficientFormerBackbone
        assert opened.get_config() == backbone.get_config()
        for before, after in zip(backbone.get_weights(), opened.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    random = hub.EfficientFormerBackbone.from_preset(tmp_path, load_weights=False)
    assert any((one != other).any() for one, other in zip(backbone.get_weights(), random.get_weights(), strict=True))


def test_classifier_preset(classifier, preset):
    # Photographs are of any size.
    photographs = np.random.default_rng(1).integers(0, 256, (2, 80, 130, 3)).astype("float32")
    for opener in (hub.EfficientFormerImageClassifier, keras_hub.models.ImageClassifier):
        opened = opener.from_preset(preset)
        assert type(opened) is hub.EfficientFormerImageClassifier
        np.testing.assert_array_equal(logits(opened, photographs), logits(classifier, photographs))


def test_another_size(classifier, checkpoint, preset):
    """The attention biases are resized as `from_checkpoint` does it, of a checkpoint and of a preset."""
    raw = np.random.default_rng(2).integers(0, 256, (1, 96, 64, 3)).astype("float32")
    network = kef.from_checkpoint(checkpoint, input_shape=(96, 64), classifier_activation=None)
    expected = to_numpy(network(kef.preprocess_input(raw)))
    for source in (checkpoint, preset):
        opened = hub.EfficientFormerImageClassifier.from_preset(source, image_shape=(96, 64, 3))
        np.testing.assert_allclose(logits(opened, raw), expected, atol=1e-5)
    backbone = hub.EfficientFormerBackbone.from_preset(preset, image_shape=(96, 64, 3))
    for found, resized in zip(backbone.get_weights(), opened.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(found, resized)


def test_new_head_and_policy(checkpoint, preset):
    for source in (checkpoint, preset):
        opened = hub.EfficientFormerImageClassifier.from_preset(source, num_classes=3, dtype="mixed_bfloat16")
        assert opened.output.shape == (None, 3)
        layers = [opened.output_dense, *opened.backbone.layers, *opened.backbone.get_layer("stage4").blocks]
        assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(("shape", "layer"), [(V1, "qkv"), (V2, "conv")], ids=FAMILIES)
def test_lora(shape, layer):
    """KerasHub's own names are of no layer here: everything would be frozen, and nothing trained."""
    backbone = loud_backbone(shape)
    backbone.enable_lora(2)
    learned = {variable.path.rpartition("/")[::2] for variable in backbone.trainable_variables}
    assert {name for _, name in learned} == {"lora_kernel_a", "lora_kernel_b", "bias"}
    assert {path.rpartition("/")[2] for path, _ in learned} == {layer}
    with pytest.raises(
        ValueError, match=rf"LoRA can be put on the layers .*\b{layer}\b.*target_layer_names=\['query'\]"
    ):
        backbone.enable_lora(2, ["query"])


def test_heads_with_lora(tmp_path):
    model = make_loud(kef.EfficientFormer(**V1, input_shape=SHAPE, classes=5, classifier_activation=None))
    head = model.get_layer("head")
    head.enable_lora(2)
    head.lora_kernel_b.assign(np.ones(head.lora_kernel_b.shape))
    model.save(tmp_path / "model.keras")
    opened = hub.EfficientFormerImageClassifier.from_preset(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(opened(IMAGES)), to_numpy(model(IMAGES)), atol=1e-4)


def segmenter():
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=loud_backbone(),
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[1, 2],
        projection_filters=8,
        image_shape=SHAPE,
    )
    converter = hub.EfficientFormerImageConverter(SHAPE[:2])
    preprocessor = keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(converter)
    masks = np.eye(3)[np.random.default_rng(3).integers(0, 3, (2, *SHAPE[:2]))]
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone, 3, preprocessor=preprocessor), masks


def retinanet():
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=loud_backbone(V2), min_level=3, max_level=5, use_p5=False, image_shape=SHAPE
    )
    converter = hub.EfficientFormerImageConverter(SHAPE[:2], bounding_box_format="xyxy")
    preprocessor = keras_hub.models.RetinaNetObjectDetectorPreprocessor(converter)
    detector = keras_hub.models.RetinaNetObjectDetector(
        backbone, 3, bounding_box_format="xyxy", preprocessor=preprocessor, pre_logits_num_conv_layers=1
    )
    boxes = np.array([[[4, 4, 40, 40]], [[10, 10, 50, 30]]], "float32")
    return detector, {"boxes": boxes, "labels": np.array([[0], [2]])}


def d_fine():
    """D-FINE's feature extractor is a model of feature maps, which is what `feature_pyramid` makes."""
    backbone = keras_hub.models.DFineBackbone(
        backbone=kef.feature_pyramid(loud_backbone()),
        out_features=["P4", "P5"],
        encoder_in_channels=[16, 32],
        feat_strides=[16, 32],
        num_feature_levels=2,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        hidden_dim=16,
        num_labels=3,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=5,
        anchor_image_size=SHAPE[:2],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=16,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.34,
        eval_idx=-1,
        num_decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        image_shape=SHAPE,
        seed=0,
    )
    boxes = np.array([[[0.4, 0.4, 0.2, 0.2]], [[0.5, 0.5, 0.3, 0.3]]], "float32")  # centres and sizes, of the image
    detector = keras_hub.models.DFineObjectDetector(backbone, 3, bounding_box_format="xyxy")
    return detector, {"boxes": boxes, "labels": np.array([[0], [2]])}


@pytest.mark.parametrize("make", [segmenter, retinanet, d_fine])
@pytest.mark.filterwarnings("ignore::UserWarning:keras")
def test_tasks_train_and_are_kept(make, tmp_path):
    task, labels = make()
    # Compiling graphs for two steps takes longer than the steps.
    task.compile(optimizer=keras.optimizers.SGD(1e-3), run_eagerly=True)
    first = next(weight for weight in task.weights if weight.path.startswith("stem/"))
    before = to_numpy(first).copy()
    history = task.fit(IMAGES if task.preprocessor is None else RAW, labels, batch_size=1, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert (to_numpy(first) != before).any()  # the backbone learns from its first layer on
    expected = arrays(task(IMAGES))
    task.save(tmp_path / "task.keras")
    task.save_to_preset(tmp_path / "preset")
    for opened in (
        keras.saving.load_model(tmp_path / "task.keras", compile=False),
        type(task).from_preset(str(tmp_path / "preset"), compile=False),
    ):
        found = arrays(opened(IMAGES))
        keras.tree.map_structure(np.testing.assert_array_equal, found, expected)
        if task.preprocessor is not None:
            np.testing.assert_array_equal(to_numpy(opened.preprocessor(RAW)), to_numpy(task.preprocessor(RAW)))


# Opens what a hub has, each beside the model that it must be equal to.
PROGRAM = """
import numpy as np
from keras.ops import convert_to_numpy as to_numpy
import keras_efficientformer as kef
from keras_efficientformer import hub

def check(name, network, raw, images, **arguments):
    expected = to_numpy(network(images))
    assert np.ptp(expected) > 0.5, expected
    classifier = hub.EfficientFormerImageClassifier.from_preset(name, **arguments)
    np.testing.assert_allclose(to_numpy(classifier(classifier.preprocessor(raw))), expected, atol=1e-5)
    return classifier.backbone

raw = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype("float32")
square = raw[:, :, :64]
l1 = kef.EfficientFormerL1(input_shape=(64, 64, 3), classifier_activation=None)
name = "hf://timm/efficientformer_l1.snap_dist_in1k"
check(name, l1, square, kef.preprocess_input(square), image_shape=(64, 64, 3))

images = kef.preprocess_input(raw, mean=[0.5, 0.4, 0.3], std=[0.5, 0.5, 0.5])
small = kef.from_checkpoint("hf://owner/timm", classifier_activation=None)
for name in ("hf://owner/timm", "hf://owner/preset"):
    backbone = check(name, small, raw, images)
    opened = hub.EfficientFormerBackbone.from_preset(name)
    np.testing.assert_array_equal(to_numpy(opened(images)), to_numpy(backbone(images)))
"""


def test_presets_of_a_hub(loud_state_dict, tmp_path):
    """Published weights by timm's name, a repository of timm's kind, and one that holds a preset of KerasHub."""
    timm, preset, l1 = tmp_path / "timm", tmp_path / "preset", tmp_path / "l1.safetensors"
    timm.mkdir()
    network = make_loud(kef.EfficientFormer(**V1, input_shape=SHAPE, classes=5))
    safetensors.numpy.save_file(to_state_dict(network), timm / "model.safetensors", metadata={"input_size": "64x96"})
    config = {"architecture": "efficientformer_own", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5] * 3}}
    (timm / "config.json").write_text(json.dumps(config))
    hub.EfficientFormerImageClassifier.from_preset(timm / "model.safetensors").save_to_preset(preset)
    write_checkpoint(l1, loud_state_dict)
    files = {
        "timm/efficientformer_l1.snap_dist_in1k": {"main": {"model.safetensors": l1}},
        "owner/timm": {"main": {path.name: path for path in timm.iterdir()}},
        "owner/preset": {"main": {path.name: path for path in preset.iterdir()}},
    }
    with HubServer(files) as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        command = [forked.programs(environment) / "python", "-c", PROGRAM]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, cwd=ROOT)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({**V1, "image_shape": (None, None, 3)}, "`image_shape` should be three integers"),
        ({**V1, "image_shape": (64, 64)}, "`image_shape` should be three integers"),
        ({**V1, **V2}, "pass the one or the others"),
        ({"depths": (1, 1, 1, 2), "widths": (8, 16, 16, 32)}, "pass the one or the others"),
        ({**V2, "mlp_ratios": None}, "pass the one or the others"),
        ({**V1, "depths": (1, 1, 1)}, "`depths` should be four integers"),
    ],
)
def test_arguments_that_fit_no_network(arguments, words):
    with pytest.raises(ValueError, match=words):
        hub.EfficientFormerBackbone(**arguments)


def test_names_that_stand_for_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor one of the names"):
        hub.EfficientFormerBackbone.from_preset("resnet_50_imagenet")
    with pytest.raises(FileNotFoundError, match="no `save_to_preset` has written"):
        hub.EfficientFormerBackbone.from_preset(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged, it is no JSON: "):
        hub.EfficientFormerBackbone.from_preset(tmp_path)
    features = kef.EfficientFormer(**V1, input_shape=(32, 32, 3), include_top=False)
    write_checkpoint(tmp_path / "features.safetensors", to_state_dict(features))
    with pytest.raises(ValueError, match="has no classes: pass `num_classes`"):
        hub.EfficientFormerImageClassifier.from_preset(tmp_path / "features.safetensors")


def test_published_shape_without_download():
    random = hub.EfficientFormerBackbone.from_preset("v2-s0", load_weights=False, image_shape=(32, 32, 3))
    assert random.architecture == VARIANTS_V2["v2_s0"]

"""Masks: which image each is of, what its numbers and colours mean, crops of both alike, and what is refused."""

import struct
import zlib

import masked_images
import numpy as np
import pytest
from PIL import Image

from keras_efficientformer.imagenet import ImageError
from keras_efficientformer.segmentation.palette import colour_values, drawn_over, read_palette
from keras_efficientformer.training import FineTuneConfig
from keras_efficientformer.training.data.mask_batches import TrainingMasks, ValidationMasks
from keras_efficientformer.training.data.masks import check_masks, hold_out_masked, list_masked, read_mask, read_masked

SIZE = (4, 6)
GREY = np.arange(24, dtype="uint8").reshape(SIZE) % 3


@pytest.fixture
def folders(tmp_path):
    """Three images in folders, each with a mask of the classes 0, 1 and 2."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a/1.jpg", "a/2.png", "b/1.webp"):
        for folder in (images, masks):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(images / name)
        Image.fromarray(GREY).save((masks / name).with_suffix(".png"))
    return images, masks


@pytest.fixture
def palette(tmp_path):
    path = tmp_path / "palette.txt"
    path.write_text(masked_images.PALETTE)
    return read_palette(path)


def test_pairs(folders):
    images = list_masked(*folders)
    assert [file.relative_to(folders[0]).as_posix() for file in images.files] == ["a/1.jpg", "a/2.png", "b/1.webp"]
    assert [path.relative_to(folders[1]).as_posix() for path in images.targets] == ["a/1.png", "a/2.png", "b/1.png"]
    np.testing.assert_array_equal(check_masks(images, None, 4), [24, 24, 24, 0])
    # Where macOS has written one of the two names, the accent is a letter of its own.
    (folders[0] / "b" / "1.webp").rename(folders[0] / "b" / "e\u0301.webp")
    (folders[1] / "b" / "1.png").rename(folders[1] / "b" / "\u00e9.png")
    assert list_masked(*folders).targets[2].name == "\u00e9.png"


def test_split(tmp_path):
    data, masks = masked_images.make_masked_folders(tmp_path, {"training": 3, "validation": 2}, (8, 8))
    training, held_out = read_masked(data, masks)
    assert (len(training), len(held_out)) == (3, 2)
    assert {path.parent.name for path in held_out.targets} == {"validation"}
    images, beside = read_masked(data / "training", masks / "training")
    assert (len(images), beside) == (3, None)
    for seed in range(4):
        training, held_out = hold_out_masked(images, 0.2, seed)
        assert (len(training), len(held_out)) == (2, 1)
        assert not set(training.files) & set(held_out.files)


def test_cityscapes(tmp_path):
    images, masks = tmp_path / "leftImg8bit", tmp_path / "gtFine"
    for part, count in (("train", 3), ("val", 2)):
        for number in range(count):
            name = f"{part}/aachen/aachen_00000{number}_000019"
            for folder, end in ((images, "leftImg8bit"), (masks, "gtFine_labelIds"), (masks, "gtFine_labelTrainIds")):
                path = folder / f"{name}_{end}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(GREY).convert("RGB" if folder is images else "L").save(path)
    training, held_out = read_masked(images, masks)
    assert (len(training), len(held_out)) == (3, 2)
    assert training.targets[1] == masks / "train" / "aachen" / "aachen_000001_000019_gtFine_labelTrainIds.png"
    np.testing.assert_array_equal(check_masks(held_out, None, 3), [16, 16, 16])
    training.targets[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"_gtFine_labelTrainIds\.png, which csCreateTrainIdLabelImgs"):
        read_masked(images, masks)


def test_pascal_voc(tmp_path):
    """Most of its images have no mask, and its lists say which have."""
    images, masks, lists = (tmp_path / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
    for folder in (images, masks, lists):
        folder.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", SIZE[::-1]).save(images / f"2007_{number}.jpg")
    for number in range(4):
        Image.fromarray(GREY).convert("P").save(masks / f"2007_{number}.png")
    (lists / "train.txt").write_text("2007_3\n2007_0\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    training, held_out = read_masked(images, masks)
    assert [path.stem for path in training.targets] == ["2007_3", "2007_0", "2007_1"]
    assert [path.stem for path in held_out.files] == ["2007_2"]
    assert list_masked(images, masks).files == held_out.files
    (lists / "val.txt").write_text("2007_2\n2007_5\n2008_7\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt should list images .*JPEGImages\. Missing: 2008_7"):
        list_masked(images, masks)
    (lists / "val.txt").write_text("2007_2\n2007_5\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask .*: 2007_5\.jpg"):
        list_masked(images, masks)


@pytest.mark.parametrize(
    ("mode", "dtype", "highest"), [("L", "uint8", 255), ("P", "uint8", 255), ("I;16", "uint16", 65535)]
)
def test_numbers(tmp_path, mode, dtype, highest):
    numbers = np.array([[0, 1, 254], [2, highest, 3]], dtype)
    image = Image.fromarray(numbers)
    if mode == "P":
        image = Image.fromarray(numbers).convert("P")
        image.putdata(numbers.ravel().tolist())
    image.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == mode
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", None), [[0, 1, 254], [2, -1, 3]])


def test_colours(tmp_path, palette):
    assert palette.names == masked_images.NAMES
    colours = np.array([*masked_images.COLOURS, (255, 255, 255)], "uint8")
    Image.fromarray(colours[[[0, 1], [3, 2]]]).save(tmp_path / "mask.png")
    expected = [[0, 1], [-1, 2]]
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", palette), expected)
    # Of a file with indices too the colours count, where there is a palette.
    Image.fromarray(colours[[[0, 1], [3, 2]]]).quantize(4).save(tmp_path / "indices.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "indices.png", palette), expected)


def test_drawing():
    picture = np.full((1, 2, 3), 100, "uint8")
    drawn = drawn_over(picture, np.array([[-1, 1]]), colour_values(["#000000", "#c80064"]))
    np.testing.assert_array_equal(drawn, [[(100, 100, 100), (155, 45, 100)]])


def test_images_and_masks_are_cropped_alike(tmp_path):
    """An image of the mask's own values shows where each pixel of a mask was taken from."""
    side = 64
    numbers = (np.add.outer(np.arange(side) // 8 * 8, np.arange(side) // 8) * 2).astype("uint8")
    for folder, picture in (("images", np.repeat(numbers[..., None], 3, -1)), ("masks", numbers)):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(picture).save(tmp_path / folder / name)
    images = list_masked(tmp_path / "images", tmp_path / "masks")
    config = FineTuneConfig(batch_size=2, min_crop=0.3)
    batches = TrainingMasks(images, None, 127, (96, 96), config)
    seen = []
    for epoch in range(4):
        (batch,) = batches.epoch(epoch)
        assert batch.images.shape == (2, 96, 96, 3)
        assert batch.labels.shape == (2, 96, 96)
        # Away from the steps between fields, where the bicubic filter mixes, both have one value.
        assert np.mean(np.abs(batch.images[..., 0] - batch.labels) < 1) > 0.5
        assert np.median(np.abs(batch.images[..., 0] - batch.labels)) < 1
        (again,) = batches.epoch(epoch)
        np.testing.assert_array_equal(batch.images, again.images)
        np.testing.assert_array_equal(batch.labels, again.labels)
        seen += [mask.tobytes() for mask in batch.labels]
    assert len(set(seen)) == len(seen)
    ups = [batch.labels[0, 48, -1] > batch.labels[0, 48, 0] for epoch in range(8) for batch in batches.epoch(epoch)]
    assert len(set(map(bool, ups))) == 2  # some are mirrored
    (whole,) = ValidationMasks(images, None, 127, (32, 16), 2).epoch(0)
    np.testing.assert_array_equal(whole.labels[0], numbers[1::2, 2::4])


def test_missing_masks(folders):
    (folders[1] / "a" / "2.png").unlink()
    Image.fromarray(GREY).save(folders[1] / "a" / "2.bmp")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no mask in .*masks: a/2\.png\. The mask of"):
        list_masked(*folders)


def test_unfit_folders(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder of masks"):
        list_masked(folders[0], tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is in the images' folder"):
        list_masked(tmp_path, folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        list_masked(tmp_path / "empty", folders[1])
    Image.new("RGB", SIZE[::-1]).save(folders[0] / "a" / "1.png")
    with pytest.raises(ValueError, match=r"have one name, and so one mask: a/1\.jpg, a/1\.png"):
        list_masked(*folders)


def test_split_where_none_is_expected(tmp_path):
    folders = masked_images.make_masked_folders(tmp_path, {"train": 1, "val": 1}, (8, 8))
    with pytest.raises(ValueError, match="holds the parts of a split: choose one, in both folders, of train, val"):
        list_masked(*folders)
    images, _ = read_masked(folders[0] / "train", folders[1] / "train")
    with pytest.raises(ValueError, match="is the one image that can be read: nothing can be held out"):
        hold_out_masked(images, 0.2, 0)


def _save(folders, pixels):
    Image.fromarray(pixels).save(folders[1] / "a" / "2.png")


def test_masks_of_another_size(folders):
    _save(folders, GREY[:3])
    with pytest.raises(ValueError, match=r"1 of 3 masks are unfit:\n.*2\.png' is 6x3 pixels, .*2\.png' is 6x4: a mask"):
        check_masks(list_masked(*folders), None, None)


def test_images_are_turned_as_they_are_seen(folders):
    image = Image.new("RGB", SIZE)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folders[0] / "a" / "1.jpg", exif=exif)
    check_masks(list_masked(*folders), None, None)
    image.resize(SIZE[::-1]).save(folders[0] / "a" / "1.jpg", exif=exif)
    with pytest.raises(ValueError, match="is 4x6, turned as its EXIF orientation says"):
        check_masks(list_masked(*folders), None, None)


def test_classes_out_of_range(folders):
    numbers = GREY.copy()
    numbers[2, 5] = 7
    _save(folders, numbers)
    images = list_masked(*folders)
    with pytest.raises(ValueError, match=r"values 0, 1, 2, 7, so that no pixel has 4 of the 8 classes.*--labels"):
        check_masks(images, None, None)
    assert check_masks(images, None, 9).tolist()[2:] == [23, 0, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match=r"2\.png' has class 7 at row 2, column 5, and there are 3 classes, 0 to 2"):
        check_masks(images, None, 3)


def test_too_few_classes(folders):
    for file in folders[1].rglob("*.png"):
        Image.fromarray(np.where(GREY == 0, 0, 255).astype("uint8")).save(file)
    with pytest.raises(ValueError, match="have 1 classes: two at least are needed"):
        check_masks(list_masked(*folders), None, None)


def test_colours_without_a_palette(folders):
    _save(folders, np.zeros((*SIZE, 3), "uint8"))
    with pytest.raises(ValueError, match=r"should hold class numbers, in one channel. Found: mode RGB; .* palette"):
        check_masks(list_masked(*folders), None, None)


def test_palettes_that_do_not_match(folders, palette):
    pixels = np.zeros((*SIZE, 3), "uint8")
    pixels[1, 2] = (1, 2, 3)
    _save(folders, pixels)
    with pytest.raises(
        ValueError, match=r"2\.png' has a colour that .*palette\.txt has not: #010203, first at row 1, c"
    ):
        check_masks(list_masked(*folders), palette, 3)
    with pytest.raises(ValueError, match=r"a/1\.png' should hold colours \(RGB or P\). Found: mode L"):
        check_masks(list_masked(*folders), palette, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky #000000\nsea 0000ff\n", r"should have a name and a colour in each line.* Found: 'sea 0000ff' \(line 2\)"),
        ("sky #000000\n\n#0000ff\n", r"Found: '#0000ff' \(line 3\)"),
        ("sky #000000\nsky #0000ff\n", "each name and each colour once. Found twice: sky"),
        ("sky #0000ff\nsea #0000FF\n", "Found twice: #0000ff"),
        ("sky #0000ff\nignored #ffffff\n", "two classes at least. Found: sky"),
        (b"\xff\xfe\x00", "should be UTF-8 text"),
    ],
    ids=["no colour", "no name", "a name twice", "a colour twice", "one class", "no text"],
)
def test_unfit_palettes(tmp_path, text, message):
    path = tmp_path / "palette.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_palette(path)


@pytest.mark.parametrize(("bits", "found"), [(4, [0, 17, 34, 255]), (2, [0, 85, 170, 255])])
def test_grey_of_few_bits(tmp_path, bits, found):
    """Pillow multiplies such values, and writes none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = "".join(f"{value:0{bits}b}" for value in (0, 1, 2, 2**bits - 1))
    content = zlib.compress(bytes(1) + int(row, 2).to_bytes(4 * bits // 8))
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    path = tmp_path / "mask.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    assert np.asarray(Image.open(path)).tolist() == [found]
    with pytest.raises(ImageError, match=rf"mask\.png' is grey of {bits} bits.*Save it with 8 bits"):
        read_mask(path, None)


@pytest.mark.parametrize("damage", ["empty", "truncated", "other format"])
def test_damaged_masks(folders, damage):
    path = folders[1] / "a" / "1.png"
    if damage == "other format":
        Image.fromarray(GREY).save(path, format="BMP")
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:50])
    with pytest.raises(
        ValueError, match=r"1 of 3 masks are unfit:\n  '.*1\.png' is not a mask, a PNG file, or damaged"
    ):
        check_masks(list_masked(*folders), None, None)

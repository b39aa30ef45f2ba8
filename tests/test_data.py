"""Opening data: folders, lists, arrays, sequences, named data sets; and what every source promises."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.data.datasets import DATASETS, default_data_root
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, has_split, open_source, subset
from barlowtwins.data.sources import ArraySource, PackedStrings

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def draw(path: Path, shade: int = 0, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade,) * 3).save(path)


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def shade(image: Image.Image | Unreadable) -> int:
    assert isinstance(image, Image.Image), image
    return int(np.asarray(image).flat[0])


class TestFolders:
    def test_classes_are_the_first_folders_and_order_is_the_sorted_path(self, tmp_path: Path) -> None:
        for number, key in enumerate(["b/2.png", "b/10.png", "a/deep/er/x.png", "a-b/1.png", "a/1.PNG"]):
            draw(tmp_path / key, number)
        source = open_source(tmp_path)
        assert keys(source) == ["a-b/1.png", "a/1.PNG", "a/deep/er/x.png", "b/10.png", "b/2.png"]
        assert source.classes == ("a", "a-b", "b")
        assert source.labels is not None and source.labels.tolist() == [1, 0, 0, 2, 2]
        assert source.labels.dtype == np.int64
        assert [shade(source.read(index)) for index in range(5)] == [3, 4, 2, 1, 0]
        assert (source.channels, source.size, source.root) == (3, None, tmp_path)
        assert source.path(1) == tmp_path / "a" / "1.PNG"

    def test_one_image_in_the_folder_itself_and_there_are_no_classes(self, tmp_path: Path) -> None:
        draw(tmp_path / "a" / "1.png")
        assert open_source(tmp_path).classes == ("a",)
        draw(tmp_path / "2.png")
        source = open_source(tmp_path)
        assert (source.classes, source.labels) == ((), None)
        assert keys(source) == ["2.png", "a/1.png"]

    def test_the_working_folder_may_change_after_opening(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        draw(tmp_path / "images" / "1.png", 9)
        monkeypatch.chdir(tmp_path)
        sources = [open_source("images"), open_source(["images/1.png"])]
        monkeypatch.chdir(tmp_path / "images")
        assert [shade(source.read(0)) for source in sources] == [9, 9]

    def test_the_fingerprint_sees_names_sizes_and_labels(self, tmp_path: Path) -> None:
        draw(tmp_path / "a" / "1.png")
        draw(tmp_path / "b" / "2.png")
        seen = [open_source(tmp_path).fingerprint()]
        assert open_source(tmp_path).fingerprint() == seen[0]
        for change in (
            lambda: draw(tmp_path / "a" / "1.png", size=(40, 30)),  # another size
            lambda: draw(tmp_path / "b" / "3.png"),  # one more
            lambda: (tmp_path / "b" / "3.png").rename(tmp_path / "b" / "4.png"),
            lambda: (tmp_path / "b" / "4.png").rename(tmp_path / "4.png"),  # no classes any more
            lambda: (tmp_path / "4.png").unlink(),
        ):
            change()
            seen.append(open_source(tmp_path).fingerprint())
        assert seen[5] == seen[1], "the same files again"
        assert len(set(seen[:5])) == 5


class TestLists:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, name in enumerate(["x.png", "a,b.png", "sub/y z.png", "no suffix"]):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (2, 2), number).save(path, "PNG")
        return tmp_path

    def test_order_repetitions_comments_and_a_mark_of_utf_8(self, folder: Path) -> None:
        (folder / "list.txt").write_text("# mine\n\nx.png\nsub/y z.png\n  a,b.png \nx.png\nno suffix\n", "utf-8-sig")
        source = open_source(folder / "list.txt")
        assert keys(source) == ["x.png", "sub/y z.png", "a,b.png", "x.png", "no suffix"]
        assert [shade(source.read(index)) for index in range(5)] == [0, 2, 1, 0, 3]
        assert source.labels is None

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("tab.txt", "x.png\tdog\na,b.png\tcat, grey\nno suffix\tdog\n"),
            ("tab.tsv", "path\tlabel\nx.png\tdog\na,b.png\tcat, grey\nno suffix\tdog\n"),
            ("commas.csv", 'filename,label\nx.png,dog\n"a,b.png","cat, grey"\nno suffix,dog\n'),
        ],
    )
    def test_labels(self, folder: Path, name: str, text: str) -> None:
        (folder / name).write_text(text)
        source = open_source(str(folder / name))
        assert keys(source) == ["x.png", "a,b.png", "no suffix"]
        assert source.classes == ("cat, grey", "dog")
        assert source.labels is not None and source.labels.tolist() == [1, 0, 1]

    def test_a_comma_after_an_image_suffix_ends_the_path(self, folder: Path) -> None:
        (folder / "list.txt").write_text("x.png, 7\na,b.png, 7\n")
        source = open_source(folder / "list.txt")
        assert (keys(source), source.classes) == (["x.png", "a,b.png"], ("7",))

    def test_absolute_paths(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "list.txt"
        elsewhere.write_text(f"{folder / 'x.png'}\n")
        source = open_source(elsewhere)
        assert source.key(0) == (folder / "x.png").as_posix()
        assert shade(source.read(0)) == 0

    def test_missing_files_are_named_with_their_lines(self, folder: Path) -> None:
        (folder / "list.txt").write_text("x.png\n\nnope.png\ngone.png\n")
        with pytest.raises(
            DataError, match=r"2 of 3 files in .*list\.txt do not exist \(line 3: nope\.png; line 4: gone"
        ):
            open_source(folder / "list.txt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "names no image: its lines are empty"),
            (b"# only\n\n", "names no image: its lines are empty"),
            (b"x.png\tdog\nx.png\n", "1 of 2 lines .* have no label, first line 2"),
            (b"\xff\xfe\x00", "must be UTF-8"),
        ],
    )
    def test_what_is_no_list(self, folder: Path, content: bytes, message: str) -> None:
        (folder / "list.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_source(folder / "list.txt")


class TestArraysAndSequences:
    @pytest.mark.parametrize(("shape", "mode"), [((5, 4, 6), "L"), ((5, 4, 6, 1), "L"), ((5, 4, 6, 3), "RGB")])
    def test_arrays(self, shape: tuple[int, ...], mode: str) -> None:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        source = open_source(images)
        assert (len(source), source.size, source.channels) == (5, (4, 6), 1 if mode == "L" else 3)
        assert source.key(2) == "array/000002"
        for index in range(5):
            image = source.read(index)
            assert isinstance(image, Image.Image) and image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), images[index].squeeze())

    def test_rgba_is_composited_on_white(self) -> None:
        images = np.zeros((1, 2, 2, 4), np.uint8)
        source = open_source(images)
        assert (shade(source.read(0)), source.channels) == (255, 3)

    @pytest.mark.parametrize(
        "images", [np.zeros((2, 3, 3, 3)), np.zeros((3, 3), np.uint8), np.zeros((2, 3, 4, 4, 5), np.uint8)]
    )
    def test_other_arrays_are_refused_with_their_shape(self, images: npt.NDArray[np.uint8]) -> None:
        with pytest.raises(DataError, match=str(images.shape[0])):
            open_source(images)

    @pytest.mark.parametrize("labels", [[0, 1], [0, 1, 5], [0, 1, -1]])
    def test_labels_that_do_not_fit(self, labels: list[int]) -> None:
        with pytest.raises(DataError, match="3 images need as many labels from 0 to 1"):
            ArraySource("x", np.zeros((3, 2, 2), np.uint8), np.array(labels), ("a", "b"))

    def test_the_fingerprint_of_an_array(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (5000, 4, 3), np.uint8)
        labels = np.arange(5000) % 3
        changed = images.copy()
        changed[4999, 3, 2] += 1
        prints = [
            ArraySource("x", images, labels).fingerprint(),
            ArraySource("x", changed, labels).fingerprint(),
            ArraySource("x", images, labels[::-1]).fingerprint(),
            ArraySource("x", images).fingerprint(),
        ]
        assert len(set(prints)) == 4
        transposed = np.ascontiguousarray(images.transpose(0, 2, 1)).transpose(0, 2, 1)  # same pixels, other layout
        assert ArraySource("x", transposed, labels).fingerprint() == prints[0]

    def test_sequences(self, tmp_path: Path) -> None:
        draw(tmp_path / "b.png", 1)
        draw(tmp_path / "a.png", 2)
        paths = open_source([tmp_path / "b.png", str(tmp_path / "a.png"), tmp_path / "none.png"])
        assert keys(paths)[:2] == [(tmp_path / name).as_posix() for name in ("b.png", "a.png")]
        assert [shade(paths.read(index)) for index in (0, 1)] == [1, 2]
        assert isinstance(paths.read(2), Unreadable)
        images = open_source(
            [Image.new("L", (2, 1), 7), np.full((3, 5, 3), 8, np.uint8), (tmp_path / "b.png").read_bytes()]
        )
        assert [shade(images.read(index)) for index in range(3)] == [7, 8, 1]
        assert images.fingerprint() != open_source([Image.new("L", (2, 1), 7)]).fingerprint()
        with pytest.raises(DataError, match="empty sequence"):
            open_source([])

    def test_one_image_file_and_a_source(self, tmp_path: Path) -> None:
        draw(tmp_path / "b.png", 1)
        source = open_source(tmp_path / "b.png")
        assert keys(source) == ["b.png"]
        assert open_source(source) is source


class TestSubsets:
    def test_a_subset_of_a_labelled_folder(self, tmp_path: Path) -> None:
        for number, key in enumerate(["a/1.png", "a/2.png", "b/3.png"]):
            draw(tmp_path / key, number)
        whole = open_source(tmp_path)
        part = subset(whole, [2, 0, 2])
        assert keys(part) == ["b/3.png", "a/1.png", "b/3.png"]
        assert part.classes == whole.classes
        assert part.labels is not None and part.labels.tolist() == [1, 0, 1]
        assert [shade(part.read(index)) for index in range(3)] == [2, 0, 2]
        assert part.path(1) == tmp_path / "a" / "1.png"
        assert part.fingerprint() != subset(whole, [0, 2, 2]).fingerprint()
        assert shade(subset(part, [1]).read(0)) == 0


class TestEverySource:
    @pytest.fixture(params=["folder", "list", "array", "images", "subset", "shapes"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Source:
        for number in range(6):
            draw(tmp_path / "images" / f"{number}.png", number * 10, (3, 3))
        (tmp_path / "list.txt").write_text("".join(f"images/{number}.png\n" for number in range(6)))
        array = np.arange(6 * 9, dtype=np.uint8).reshape(6, 3, 3)
        return {
            "folder": lambda: open_source(tmp_path / "images"),
            "list": lambda: open_source(tmp_path / "list.txt"),
            "array": lambda: open_source(array[..., None]),
            "images": lambda: open_source([Image.fromarray(image) for image in array]),
            "subset": lambda: subset(open_source(tmp_path / "images"), range(6)),
            "shapes": lambda: open_source("shapes:6"),
        }[request.param]()

    def test_reads_the_same_in_a_spawned_process(self, source: Source) -> None:
        again = pickle.loads(pickle.dumps(source))
        assert keys(again) == keys(source)
        assert again.fingerprint() == source.fingerprint()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            there = [np.asarray(image) for image in pool.map(source.read, range(6))]
        for index, image in enumerate(there):
            np.testing.assert_array_equal(image, np.asarray(source.read(index)))

    def test_ends(self, source: Source) -> None:
        assert len(source) == 6
        for read in (source.key, source.read):
            with pytest.raises(IndexError):
                read(6)


@given(st.lists(st.text(st.characters(exclude_categories=[]))))
@settings(deadline=None)
def test_packed_strings_are_the_strings(strings: list[str]) -> None:
    packed = pickle.loads(pickle.dumps(PackedStrings(strings)))
    assert list(packed) == strings
    assert packed[1:-1] == strings[1:-1]
    if strings:
        assert packed[-1] == strings[-1]


class TestNames:
    @pytest.mark.parametrize("name", ["fashion-mnsit", "cifar-10", "shape", "SHAPES"])
    def test_a_mistyped_name_is_answered_with_the_closest(self, name: str) -> None:
        closest = {"f": "fashion-mnist", "c": "cifar10", "s": "shapes", "S": "shapes"}[name[0]]
        with pytest.raises(DataError, match=f"did you mean '{closest}'.*imagenette"):
            open_source(name)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no folder, file or data set 'photos'; data sets: shapes, "):
            open_source("photos")
        with pytest.raises(DataError, match=r"there/photos does not exist, nor does its folder"):
            open_source(tmp_path / "there" / "photos")

    def test_a_path_is_never_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        draw(tmp_path / "shapes" / "1.png")
        assert keys(open_source("./shapes")) == keys(open_source(Path("shapes"))) == ["1.png"]
        assert open_source("shapes:3").key(0) == "shapes/000000"

    def test_a_file_that_is_neither_list_nor_image(self, tmp_path: Path) -> None:
        (tmp_path / "data.zip").touch()
        with pytest.raises(DataError, match=r"data\.zip is neither a folder nor a list"):
            open_source(tmp_path / "data.zip")

    def test_splits(self) -> None:
        assert has_split("cifar10", "test") and has_split("shapes:9", "train")
        assert not has_split("stl10-unlabeled", "test")
        assert not has_split("photos", "test") and not has_split(Path("shapes"), "test")
        with pytest.raises(DataError, match="stl10-unlabeled has no split 'test'; it has train"):
            open_source("stl10-unlabeled", split="test")

    @pytest.mark.parametrize("name", ["shapes:0", "shapes:many", "cifar10:5"])
    def test_numbers_that_mean_nothing(self, name: str) -> None:
        with pytest.raises(DataError, match="only shapes takes a number"):
            open_source(name)

    def test_where_data_sets_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_data_root() == tmp_path / "barlowtwins" / "data"


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()) if path.suffix == ".gz" else header + array.tobytes())


class TestFashionMNIST:
    @pytest.fixture
    def small(self, tmp_path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
        labels = np.array([9, 0, 3, 3, 1, 7], np.uint8)
        write_idx(tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte", labels)  # packed or not
        return images, labels

    def test_own_files_come_first(self, small: tuple[npt.NDArray[np.uint8], ...], tmp_path: Path) -> None:
        source = open_source("fashion-mnist", data_root=tmp_path)
        assert isinstance(source, ArraySource)
        np.testing.assert_array_equal(source.images, small[0])
        assert source.labels is not None and source.labels.tolist() == small[1].tolist()
        assert (source.channels, source.size, source.classes[9]) == (1, (28, 28), "Ankle boot")

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize(
        "fault", ["cut", "cut and packed again", "wrong shape", "labels are missing", "one label less"]
    )
    def test_damaged_files(self, fault: str, tmp_path: Path) -> None:
        file = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
        labels = tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte"
        if fault == "cut":
            file.write_bytes(file.read_bytes()[:-100])
        elif fault == "cut and packed again":
            file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
        elif fault == "wrong shape":
            write_idx(file, np.zeros((6, 28), np.uint8))
        elif fault == "labels are missing":
            labels.unlink()
        else:
            write_idx(labels, np.zeros(5, np.uint8))
        with pytest.raises(DataError, match="fashion-mnist"):
            open_source("fashion-mnist", data_root=tmp_path)

    @pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
    def test_the_real_files_against_torchvision(self, tmp_path: Path) -> None:
        from torchvision.datasets import FashionMNIST

        raw = tmp_path / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file in DEBIAN.glob("t10k*.gz"):
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        for kind in ("images-idx3", "labels-idx1"):  # torchvision wants to see the training files too
            (raw / f"train-{kind}-ubyte").touch()
        theirs = FashionMNIST(tmp_path, train=False)
        ours = open_source("fashion-mnist", split="test", data_root=tmp_path / "empty")
        assert isinstance(ours, ArraySource) and ours.labels is not None
        np.testing.assert_array_equal(ours.images, theirs.data.numpy())
        np.testing.assert_array_equal(ours.labels, theirs.targets.numpy())
        assert list(ours.classes) == theirs.classes


class TestImagenette:
    @pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="becomes another user for a while")
    def test_a_copy_in_a_folder_that_one_may_only_read(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            for kind in ("train", "val"):
                draw(root / "imagenette2-320" / kind / "n03425413" / "1.JPEG")
            for folder in [root, *root.glob("**")]:
                folder.chmod(0o755)
            os.seteuid(65534)
            try:
                assert open_source("imagenette", data_root=root).classes == ("gas pump",)
            finally:
                os.seteuid(0)

    def test_an_unpacked_copy_is_used(self, tmp_path: Path) -> None:
        for kind, count in (("train", 2), ("val", 1)):
            for number in range(count):
                for folder in ("n01440764", "n03888257"):
                    draw(tmp_path / "imagenette2-320" / kind / folder / f"{folder}_{number}.JPEG")
        train = open_source("imagenette", data_root=tmp_path)
        test = open_source("imagenette", split="test", data_root=tmp_path)
        assert (len(train), len(test)) == (4, 2)
        assert train.labels is not None and train.labels.tolist() == [1, 1, 0, 0]
        assert train.classes == test.classes == ("parachute", "tench")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: every connection goes to a proxy that is not there."""
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"shapes", "fashion-mnist"}))
def test_offline_the_message_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    archive = {"cifar10": r"cifar-10-python\.tar\.gz", "cifar100": r"cifar-100-python\.tar\.gz"}.get(
        name, "stl10_binary" if name.startswith("stl10") else "imagenette2-320"
    )
    with pytest.raises(DataError, match=rf"{name} is not in .* and cannot be downloaded .* put {archive}"):
        open_source(name, data_root=tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(".")] == []


class TestLeftOut:
    """What is not taken is counted."""

    def test_folders_that_a_system_makes_and_suffixes_that_are_not_read(self, tmp_path: Path) -> None:
        for key in ("cat/1.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB.png", "dog/2.png", "#recycle/dog/3.png"):
            draw(tmp_path / key)
        for key in ("$RECYCLE.BIN/4.png", "@__thumb/5.png", ".ipynb_checkpoints/6.png", "__MACOSX/cat/._1.png"):
            draw(tmp_path / key)
        for key in ("cat/raw.NEF", "dog/raw.nef", "notes.txt", "dog/.DS_Store", "LICENSE"):
            (tmp_path / key).touch()
        source = open_source(tmp_path)
        assert keys(source) == ["cat/1.png", "dog/2.png"]
        assert source.classes == ("cat", "dog")
        assert source.left_out == {
            "files in @eaDir": 1,
            "files in #recycle": 1,
            "files in $RECYCLE.BIN": 1,
            "files in @__thumb": 1,
            "files in __MACOSX": 1,
            "hidden folders": 1,
            "hidden files": 1,
            ".nef files": 2,
            ".txt files": 1,
            "files without a suffix": 1,
        }
        assert subset(source, [0]).left_out == source.left_out

    def test_a_folder_of_nothing_but_thumbnails(self, tmp_path: Path) -> None:
        draw(tmp_path / "@eaDir" / "1.png")
        with pytest.raises(DataError, match=r"no files are there \(and left out: 1 files in @eaDir\)"):
            open_source(tmp_path)

    def test_photos_of_phones_are_read_or_counted(self, tmp_path: Path) -> None:
        draw(tmp_path / "1.png")
        pillow_heif = pytest.importorskip("pillow_heif")
        picture = np.zeros((24, 32, 3), np.uint8)
        picture[:, 16:] = (200, 100, 50)
        exif = Image.Exif()
        pillow_heif.from_pillow(Image.fromarray(picture)).save(tmp_path / "2.HEIC", quality=95, exif=exif)
        read = open_source(tmp_path).read(0)
        assert open_source(tmp_path).key(1) == "2.HEIC"
        read = open_source(tmp_path).read(1)
        assert isinstance(read, Image.Image) and np.abs(np.asarray(read).astype(int) - picture).mean() < 4
        cut = (tmp_path / "2.HEIC").read_bytes()
        (tmp_path / "2.HEIC").write_bytes(cut[: len(cut) // 2])
        assert isinstance(open_source(tmp_path).read(1), Unreadable)

    def test_without_the_extra_the_message_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "1.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
        (tmp_path / "2.heic").touch()
        program = (
            "import sys; sys.modules['pillow_heif'] = None\n"
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name: None if name == 'pillow_heif' else find(name)\n"
            "from barlowtwins.data.open import open_source; from barlowtwins.data.images import read_image\n"
            "print(read_image(sys.argv[1] + '/1.heic').why)\n"
            "try: open_source(sys.argv[1])\n"
            "except Exception as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
        read, listed = done.stdout.splitlines()
        assert "a HEIF image; pip install 'barlowtwins[heif]' reads it" in read
        assert "2 files, most common suffixes .heic (2)" in listed
        assert listed.endswith("pip install 'barlowtwins[heif]' reads .heic; give a folder that has some")


class TestAccents:
    """Names that differ only in how accents are stored: composed (NFC) or with marks of their own (NFD)."""

    NFC, NFD = "\u00c4pfel", "A\u0308pfel"

    def test_classes_are_compared_composed(self, tmp_path: Path) -> None:
        draw(tmp_path / "train" / self.NFC / "1.png")
        draw(tmp_path / "val" / self.NFD / "1.png")
        train, val = open_source(tmp_path / "train"), open_source(tmp_path / "val")
        assert train.classes == val.classes == (self.NFC,)
        assert isinstance(val.read(0), Image.Image), "the file is found by the name that it has"

    def test_two_folders_that_are_equal_but_for_that_are_refused(self, tmp_path: Path) -> None:
        for name in (self.NFC, self.NFD):
            draw(tmp_path / name / "1.png")
        if len(list(tmp_path.iterdir())) == 1:
            pytest.skip("this file system takes both names for one")
        with pytest.raises(DataError, match=r"two class folders are both called .*'A\\u0308pfel' and '\\xc4pfel'"):
            open_source(tmp_path)


def test_a_folder_that_has_a_data_sets_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "shapes" / "1.png")
    assert open_source("shapes:3").key(0) == "shapes/000000"
    assert capsys.readouterr().err == ""
    assert len(open_source("shapes")) == 10_000
    assert (
        "shapes is the data set of this name; for the folder shapes that is here write ./shapes"
        in capsys.readouterr().err
    )

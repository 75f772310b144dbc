"""The table reader reads what people have, and says in one line what it cannot read."""

import csv
import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.table import read_table

Make = Callable[..., Path]


def labels_of(root: Path) -> dict[str, set[str]]:
    dataset = read_table(root)
    return {
        Path(file).name: {dataset.labels[i] for i in np.flatnonzero(row)}
        for file, row in zip(dataset.files, dataset.targets, strict=True)
    }


@pytest.mark.parametrize(
    ("cells", "separator"), [("a b|c|a", "|"), ("a b;c;a", ";"), ("a,c,a", ","), ("a c  a", " ")], ids=repr
)
def test_label_separators(table: Make, cells: str, separator: str) -> None:
    got = labels_of(table(f'image,labels,caption\n0.jpg,"{cells}",x\n1.jpg,,y\n'))
    assert got == {"0.jpg": {"a", "c"} | ({"a b"} if separator in "|;" else set()), "1.jpg": set()}


def test_what_separates_columns_is_seen_in_the_header(table: Make) -> None:
    root = table("image,labels\n0.jpg,a;b;c;a;b\n1.jpg,b; c;\n,\n2.jpg,  \n")
    assert labels_of(root) == {"0.jpg": {"a", "b", "c"}, "1.jpg": {"b", "c"}, "2.jpg": set()}
    assert not read_table(root).rejected  # a row of nothing is none


def test_one_column_a_label(table: Make) -> None:
    root = table("file,sun,sea,caption\n0.jpg,1,0,one\n1.jpg,0,0,two\n2.jpg,1,1,three\n")
    assert labels_of(root) == {"0.jpg": {"sun"}, "1.jpg": set(), "2.jpg": {"sun", "sea"}}


def test_a_column_of_labels_called_1(table: Make) -> None:
    """As in a part of the study's table: no 0/1 column, though it looks like one."""
    assert labels_of(table("image,labels,caption\n0.jpg,1,x\n1.jpg,,y\n")) == {"0.jpg": {"1"}, "1.jpg": set()}


def test_zero_and_one_as_numbers_of_any_kind(table: Make) -> None:
    root = table("file,sun,sea,caption\n0.jpg,1.00,0.0,one\n1.jpg,0,0e0,two\n2.jpg,True,1,three\n")
    assert labels_of(root) == {"0.jpg": {"sun"}, "1.jpg": set(), "2.jpg": {"sun", "sea"}}
    assert read_table(root).notes == ("train.csv: no labels, since not 0/1: 'caption'",)


@pytest.mark.parametrize("odd", ["2", "NaN", "-1", "yes"])
def test_an_odd_cell_does_not_cost_a_whole_label(table: Make, odd: str) -> None:
    rows = "".join(f"{i}.jpg,1,{odd if i == 7 else i % 2}\n" for i in range(20))
    with pytest.raises(InputError, match=rf"train.csv: column 'sea' .*; line 9 has '{odd}'"):
        read_table(table("image,sun,sea\n" + rows))


def test_columns_without_a_name_and_long_cells(table: Make) -> None:
    root = table(f"image,labels,,\n0.jpg,a,,\n1.jpg,b,{'x' * 200_000},\n")
    assert labels_of(root) == {"0.jpg": {"a"}, "1.jpg": {"b"}}


@pytest.mark.parametrize("text", ["sea,sand", "sea,sand,,", "sea, sand, "])
def test_cells_beyond_the_header_are_not_lost(table: Make, text: str) -> None:
    """Labels with commas between them, and nothing around them."""
    root = table(f"image,labels\n0.jpg,sun,\n1.jpg,{text}\n2.jpg,a,b,c\n")
    assert labels_of(root) == {"0.jpg": {"sun"}, "1.jpg": {"sea", "sand"}, "2.jpg": {"a", "b", "c"}}
    (note,) = read_table(root).notes
    assert note.startswith("train.csv, line 3: more cells than the header has; they are read as part of the last (1 ")


def test_a_cell_too_many_is_no_zero_or_one(table: Make) -> None:
    rows = "".join(f"{i}.jpg,{i % 2},1{',0' if i == 7 else ''}\n" for i in range(20))
    with pytest.raises(InputError, match=r"column 'sea' .*; line 9 has '1,0'"):
        read_table(table("image,sun,sea\n" + rows))


@pytest.mark.parametrize(
    "cells",
    [
        ["('cat', 'dog')", "('cat',)", "()"],
        ["{'cat', 'dog'}", "{'cat'}", "set()"],
        ["['cat', 'dog']", "['cat']", "cat", "nan", "None"],
        ["[np.str_('cat'), np.str_('dog')]", "[np.str_('cat')]"],
        ["('cat', 'dog')"],
    ],
    ids=["tuples", "sets", "some that are none", "numpy 2", "one"],
)
def test_lists_in_other_brackets_and_beside_other_cells(table: Make, cells: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("image", "labels"), *((f"{i}.jpg", cell) for i, cell in enumerate(cells))])
    root = table(text.getvalue())
    assert read_table(root).labels == ("cat", "dog")
    assert labels_of(root)["0.jpg"] == {"cat", "dog"}


def test_blanks_after_a_comma_are_not_part_of_a_cell(table: Make) -> None:
    root = table('"image", "labels"\n0.jpg, "cat,dog"\n1.jpg, "cat"\n')
    assert labels_of(root) == {"0.jpg": {"cat", "dog"}, "1.jpg": {"cat"}}


def test_labels_are_the_same_however_their_accents_are_written(table: Make) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    root = table(f"image,labels\n0.jpg,{composed}\n1.jpg,{apart}\n", val=f"image,labels\n2.jpg,{apart}\n")
    assert read_table(root).labels == (composed,)
    (root / "labels.txt").write_text(apart)
    assert read_table(root).labels == (composed,)
    root = table(f"image,{composed},x\n0.jpg,1,0\n1.jpg,0,1\n", val=f"image,{apart},x\n2.jpg,1,0\n")
    (root / "labels.txt").unlink()
    assert read_table(root).labels == (composed, "x")


def test_labels_txt_chooses_among_columns_of_0_and_1(table: Make) -> None:
    root = table("image,cat,dog,male\n0.jpg,1,0,1\n1.jpg,0,1,0\n")
    (root / "labels.txt").write_text("dog\ncat\n")
    assert read_table(root).labels == ("dog", "cat")
    assert labels_of(root) == {"0.jpg": {"cat"}, "1.jpg": {"dog"}}
    (root / "labels.txt").write_text("dog\nhorse\n")
    with pytest.raises(InputError, match=r"train.csv: column 'horse' is missing; it is a label in labels.txt"):
        read_table(root)


def test_columns_of_val_may_be_in_another_order(table: Make) -> None:
    root = table("image,labels\n0.jpg,cat\n1.jpg,dog\n", val="labels,image\ncat,2.jpg\n")
    assert labels_of(root)["2.jpg"] == {"cat"}
    root = table("image,cat,dog\n0.jpg,1,0\n1.jpg,0,1\n", val="dog,image,cat\n1,2.jpg,0\n")
    assert labels_of(root)["2.jpg"] == {"dog"}
    root = table("image,labels\n0.jpg,cat\n1.jpg,dog\n", val="photo,labels\nno.jpg,cat\n")
    assert "val.csv: none of its pictures is there, so it is left out" in read_table(root).notes


def test_lists_of_0_and_1_name_no_labels(table: Make) -> None:
    with pytest.raises(InputError, match=r"train.csv: column 'labels': its cells are lists of 0 and 1; give"):
        read_table(table('image,labels\n0.jpg,"[0, 1, 0]"\n1.jpg,"[1, 1, 0]"\n'))


def test_a_remark_that_makes_the_separator_is_told(table: Make) -> None:
    root = table("image,labels\n0.jpg,clear primary\n1.jpg,haze water\n2.jpg,cloudy road,check this\n")
    assert "column 'labels': labels are separated by ',', which few cells have" in read_table(root).notes[1]


@pytest.mark.parametrize("row", ["0.jpg,cat,dog,bird", "0.jpg,cat,,dog", "0.jpg,cat,dog"])
def test_cells_without_a_column_s_name_are_left_out_and_told(table: Make, row: str) -> None:
    root = table(f"image,labels,,\n{row}\n1.jpg,sun,,\n")
    assert labels_of(root) == {"0.jpg": {"cat"}, "1.jpg": {"sun"}}
    assert read_table(root).notes == ("train.csv, line 2: cells in columns without a name are left out",)


def test_the_index_of_a_long_table_and_of_a_short_split(table: Make) -> None:
    """A row a label: fewer pictures than rows. What train.csv tells of the columns holds for the others."""
    root = table(
        ",image_id,label\n0,12,cat\n1,12,dog\n2,15,cat\n3,15,sea\n4,7,cat\n", val=",image_id,label\n0,3,cat\n1,3,dog\n"
    )
    assert labels_of(root) == {
        "12.jpg": {"cat", "dog"},
        "15.jpg": {"cat", "sea"},
        "7.jpg": {"cat"},
        "3.jpg": {"cat", "dog"},
    }


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("ending", [".jpg", ""])
def test_the_index_that_pandas_writes_names_no_picture(table: Make, name: str, ending: str) -> None:
    """Its numbers may be ids of other pictures, which would get the labels."""
    rows = "".join(f"{i},{(i + 5) % 20}{ending},{'cat' if i % 2 else 'dog'}\n" for i in range(20))
    root = table(f"{name},image,labels\n{rows}")
    assert labels_of(root) == {f"{(i + 5) % 20}.jpg": {"cat" if i % 2 else "dog"} for i in range(20)}
    assert read_table(root).notes == ("train.csv: the first column numbers the rows; pictures are named by 'image'",)
    double = table(f",{name or 'Unnamed: 0'},image,labels\n" + "".join(f"7,{row}\n" for row in rows.splitlines()))
    assert len(labels_of(double)) == 20
    twice = table(",Unnamed: 0,image,labels\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows.splitlines())))
    assert labels_of(twice) == labels_of(root)


@pytest.mark.parametrize(
    "text",
    [
        ",labels\n0.jpg,cat\n1.jpg,dog\n",
        ",count,labels\n0,1,cat\n1,1,dog\n2,1,\n",
        ",cat,dog\n0,1,0\n1,0,1\n",
        "Unnamed: 0,image,labels\n0.jpg,x,cat\n1.jpg,1,dog\n",
        ",mask,labels\n0.jpg,1.jpg,cat\n1.jpg,0.jpg,dog\n",
    ],
    ids=["two columns", "counts", "0/1", "some other names", "pictures in pairs"],
)
def test_a_column_without_a_name_may_hold_the_pictures(table: Make, text: str) -> None:
    got = labels_of(table(text))
    assert (got["0.jpg"], got["1.jpg"]) == ({"cat"}, {"dog"})


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["['traffic light', \"dog's\"]", "[]", ""], {"traffic light", "dog's"}),
        (['["traffic light", "B\\u00e4r"]', '["a \\"b\\""]'], {"traffic light", "Bär", 'a "b"'}),
        (["['traffic light' 'dog'\n 'cat']", "['dog']"], {"traffic light", "dog", "cat"}),
        (["[ 1  5]", "[10]"], {"1", "5", "10"}),
        (["[1, 5]", "[]"], {"1", "5"}),
        (["[traffic light, dog]", "[traffic light]"], {"traffic light", "dog"}),
        (["[cat, 'traffic light']"], {"cat", "traffic light"}),
        (["[old] cat|[old] dog", "[old]"], {"[old] cat", "[old] dog", "[old]"}),
        (["[old]|[new]", "[new]"], {"[old]", "[new]"}),
        (["[traffic light, dog]", "[dog's bowl, cat]"], {"traffic light", "dog", "dog's bowl", "cat"}),
    ],
    ids=["Python", "JSON", "numpy", "numpy numbers", "numbers", "bare", "half", "none", "names", "apostrophe"],
)
def test_lists_that_programs_write(table: Make, cells: list[str], labels: set[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("image", "labels"), *((f"{i}.jpg", cell) for i, cell in enumerate(cells))])
    root = table(text.getvalue())
    assert set(read_table(root).labels) == labels
    assert not read_table(root).notes


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (("a|b", "c;d"), "labels are separated by '|'; ';' stays part of them"),
        (("a|b", "c;d,e"), "labels are separated by '|'; ';' and ',' stay part of them"),
        (
            ("cat", "traffic light"),
            "labels are separated by blanks; for names with blanks put | between labels or list them in labels.txt",
        ),
        (("1 12", "3"), None),
        (("a|traffic light", "b"), None),
        (("cat", "dog"), None),
    ],
)
def test_what_separates_labels_is_told_where_it_is_a_guess(
    table: Make, cells: tuple[str, ...], note: str | None
) -> None:
    rows = "".join(f'{i}.jpg,"{cell}"\n' for i, cell in enumerate(cells))
    assert read_table(table(f"image,labels\n{rows}")).notes == ((f"column 'labels': {note}",) if note else ())


def test_labels_txt_may_have_a_cell_as_a_whole(table: Make) -> None:
    root = table('image,label\n0.jpg,traffic light\n1.jpg,dog\n2.jpg,"red, orange"\n3.jpg,dog traffic\n')
    (root / "labels.txt").write_text("dog\ntraffic light\nred, orange\ntraffic\n")
    assert labels_of(root) == {
        "0.jpg": {"traffic light"},
        "1.jpg": {"dog"},
        "2.jpg": {"red, orange"},
        "3.jpg": {"dog", "traffic"},
    }
    assert not read_table(root).notes


def test_columns_that_are_no_labels_are_told_however_many_they_are(table: Make) -> None:
    """Those with -1 for uncertain by themselves: their author takes them for labels."""
    others = [f"text{i}" for i in range(12)]
    rows = "".join(f"{i}.jpg,{i % 2},{-1 if i % 3 == 0 else 1}{',x' * 12}\n" for i in range(20))
    dataset = read_table(table(f"image,sun,Edema,{','.join(others)}\n{rows}"))
    assert dataset.labels == ("sun",)
    assert dataset.notes == (
        f"train.csv: no labels, since not 0/1: {', '.join(map(repr, others[:10]))} and 2 more",
        "train.csv: mostly but not only 0/1, so no labels: 'Edema'",
    )


def test_encodings_are_told(table: Make) -> None:
    root = table("")
    (root / "train.csv").write_text("image,labels\n0.jpg,a\n", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16; save it as UTF-8"):
        read_table(root)
    (root / "train.csv").write_text("image,labels\n0.jpg,a\n1.jpg,Bär\n", encoding="latin-1")
    assert "train.csv, line 3: not UTF-8 (Latin-1?)" in read_table(root).notes[0]
    (root / "labels.txt").write_text("Bär\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"labels.txt: is not UTF-8"):
        read_table(root)


def test_pictures_that_cannot_be_opened_are_left_out_by_name(table: Make, tmp_path: Path) -> None:
    """A pipe would be waited for without end; links may lead nowhere or in a circle; names may be too long."""
    long = "n" * 300 + ".jpg"
    inside = tmp_path / "data" / "images" / "1.jpg"
    names = ["pipe.jpg", "dangling.jpg", "circle.jpg", long, f"{long}/a.jpg"]
    root = table("image,labels\n0.jpg,a\n" + "".join(f"{name},a\n" for name in [*names, str(inside)]))
    os.mkfifo(root / "images" / "pipe.jpg")
    (root / "images" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "images" / "circle.jpg").symlink_to("circle.jpg")
    dataset = read_table(root)
    assert dataset.files == ("images/0.jpg", "images/1.jpg")  # an absolute name inside the folder is as good as any
    assert [r.file for r in dataset.rejected] == names
    assert [r.reason for r in dataset.rejected] == ["not a file", *["no such picture"] * 4]


def test_a_zero_one_column_beside_the_labels_is_no_label(table: Make) -> None:
    root = table("image,reviewed,labels\n0.jpg,1,a b\n1.jpg,0,b\n")
    assert labels_of(root) == {"0.jpg": {"a", "b"}, "1.jpg": {"b"}}


def test_labels_txt_chooses_0_1_columns_beside_a_column_of_names(table: Make) -> None:
    root = table("image,cat,dog,class,category\n0.jpg,1,0,x,pet\n1.jpg,0,1,y,wild\n")
    dataset = read_table(root)
    assert dataset.labels == ("x", "y")
    note = "train.csv: labels are those of column 'class'; passed over: 'cat', 'dog', 'category'"
    assert dataset.notes == (note,)
    (root / "labels.txt").write_text("cat\ndog\n")
    assert labels_of(root) == {"0.jpg": {"cat"}, "1.jpg": {"dog"}}
    (root / "labels.txt").write_text("x\ny\nz\n")
    assert read_table(root).labels == ("x", "y", "z")


def test_a_label_of_two_words_is_whole_however_its_accents_are_written(table: Make) -> None:
    root = table("image,labels\n0.jpg,cre\u0300me bru\u0302le\u0301e\n1.jpg,tea\n")
    (root / "labels.txt").write_text("cr\u00e8me br\u00fbl\u00e9e\ntea\n")
    assert labels_of(root) == {"0.jpg": {"cr\u00e8me br\u00fbl\u00e9e"}, "1.jpg": {"tea"}}


def test_label_order_is_natural(table: Make) -> None:
    assert read_table(table("image,labels\n0.jpg,10 2\n1.jpg,1\n")).labels == ("1", "2", "10")


def test_labels_txt_fixes_the_order(table: Make) -> None:
    root = table("image,labels\n0.jpg,b\n1.jpg,a\n")
    (root / "labels.txt").write_text("c\nb\na\n")
    assert read_table(root).labels == ("c", "b", "a")


def test_captions_with_commas_quotes_and_line_breaks(table: Make) -> None:
    text = (
        "ImageID,Labels,Caption\r\n"
        '0.jpg,1 2,"two, commas, here"\r\n'
        '1.jpg,2,"a ""quoted"" word"\r\n'
        '2.jpg,1,"on two\nlines"\r\n'
        '3.jpg,1,"the word " Driving \' written, under it."\r\n'
        '4.jpg,2,half a " quote, unquoted\r\n'
        "5.jpg,1 3,plain\r\n"
    )
    assert labels_of(table(text)) == {
        "0.jpg": {"1", "2"},
        "1.jpg": {"2"},
        "2.jpg": {"1"},
        "3.jpg": {"1"},
        "4.jpg": {"2"},
        "5.jpg": {"1", "3"},
    }


def test_stray_quote_does_not_swallow_rows(table: Make) -> None:
    text = 'image,labels,caption\n0.jpg,a,"never closed\n1.jpg,b,fine\n2.jpg,c,"fine too"\n3.jpg,a,end\n'
    assert labels_of(table(text)) == {"0.jpg": {"a"}, "1.jpg": {"b"}, "2.jpg": {"c"}, "3.jpg": {"a"}}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captions=st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_any_caption_that_is_quoted_properly(table: Make, captions: list[str]) -> None:
    """No caption of a well-formed table moves a label to another picture."""
    text = io.StringIO()
    csv.writer(text).writerow(["image", "labels", "caption"])
    for i, caption in enumerate(captions):
        looks_like_a_row = ".jpg" in caption
        csv.writer(text).writerow([f"{i}.jpg", f"label{i}", "" if looks_like_a_row else caption])
    root = table("", pictures=0)
    (root / "train.csv").write_bytes(text.getvalue().encode("utf-8", "replace"))
    for i in range(len(captions)):
        (root / "images" / f"{i}.jpg").touch()
    assert {name: labels for name, labels in labels_of(root).items() if labels} == {
        f"{i}.jpg": {f"label{i}"} for i in range(len(captions))
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('id,labels,caption\n0,a,"never closed\n1,b,fine\n2,c,"fine"\n', {"0": {"a"}, "1": {"b"}, "2": {"c"}}),
        ('id,caption,labels\n0,"never closed,a\n1,"fine",b\n2,"open,c\n', {"0": {"a"}, "1": {"b"}, "2": {"c"}}),
        ('id,caption,labels\n0,"open,"a"\n1,x,b\n', {"0": {"a"}, "1": {"b"}}),
        ('id,labels,caption\n0,a,"open\n1,b,"on two\nlines"\n2,c,x\n', {"0": {"a"}, "1": {"b"}, "2": {"c"}}),
        ('id,labels,caption\n0,a,"one\n1.jpg, said ""he"", and"\n2,c,x\n', {"0": {"a"}, "2": {"c"}}),
    ],
    ids=["ids", "before the labels", "before quoted labels", "then on two lines", "closed"],
)
def test_quotes_cost_no_label_and_invent_none(table: Make, text: str, expected: dict[str, set[str]]) -> None:
    assert labels_of(table(text)) == {f"{name}.jpg": labels for name, labels in expected.items()}


def test_what_a_quote_hides_is_noted(table: Make) -> None:
    root = table('image,labels,caption\n0.jpg,a,"one\n1.jpg, said, and"\n2.jpg,c,x\n')
    assert read_table(root).notes == ("train.csv, line 2: a quoted cell has lines in it that look like rows",)
    root = table('image,caption,x,y,labels\n0.jpg,"open, with,b\n1.jpg,x,,,a\n2.jpg,"open, too\n')
    (note,) = read_table(root).notes
    assert note == "train.csv, line 2: cells are missing after a quote that is not closed (1 more rows are like it)"


def test_ids_without_ending(table: Make) -> None:
    assert labels_of(table("id,labels\n0,a\n1,b\n")) == {"0.jpg": {"a"}, "1.jpg": {"b"}}


def test_an_id_of_several_pictures_means_the_first_ending(table: Make) -> None:
    root = table("image,labels\n0,a\n1,b\n")
    (root / "images" / "0.png").touch()
    (root / "images" / "0.bmp").touch()
    (root / "images" / "0.txt").touch()
    assert read_table(root).files == ("images/0.bmp", "images/1.jpg")


@pytest.mark.parametrize("folder", ["data", "train", "."])
def test_picture_folders(table: Make, folder: str) -> None:
    root = table("image,labels\n0.jpg,a\n")
    (root / "images").rename(root / "moved")
    (root / folder).mkdir(exist_ok=True)
    (root / "moved" / "0.jpg").rename(root / folder / "0.jpg")
    assert labels_of(root) == {"0.jpg": {"a"}}


def test_splits_with_folders_of_their_own(table: Make) -> None:
    """The same file name in train/ and val/ is two pictures."""
    root = table("image,labels\n0.jpg,a\n", val="image,labels\n0.jpg,a\n")
    for folder in ("train", "val"):
        (root / folder).mkdir()
        (root / folder / "0.jpg").touch()
    dataset = read_table(root)
    assert dataset.files == ("train/0.jpg", "val/0.jpg")
    assert not dataset.notes


def test_rows_of_the_same_picture_are_merged(table: Make) -> None:
    root = table("image,labels\n0.jpg,a\n0.jpg,b\n1.jpg,a\n")
    assert labels_of(root) == {"0.jpg": {"a", "b"}, "1.jpg": {"a"}}
    assert "1 further row " in read_table(root).notes[0]


def test_semicolons_and_byte_order_mark(table: Make) -> None:
    assert labels_of(table("\ufeffimage;tags\n0.jpg;a b\n1.jpg;a\n")) == {"0.jpg": {"a", "b"}, "1.jpg": {"a"}}


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_as_characters_of_their_own_are_the_same_name(table: Make, on_disk: str, in_table: str) -> None:
    """A Mac's files beside a table from elsewhere."""
    root = table("")
    names = ["größe.jpg", "Bär.png"]
    for name in names:
        (root / "images" / unicodedata.normalize(on_disk, name)).touch()
    rows = unicodedata.normalize(in_table, "größe.jpg,a\nBär,b\nBäume,a\n")
    (root / "train.csv").write_text(f"image,labels\n0.jpg,a\n{rows}")
    dataset = read_table(root)
    assert dataset.files == ("images/0.jpg", *(unicodedata.normalize(on_disk, f"images/{name}") for name in names))
    assert [unicodedata.normalize("NFC", rejected.file) for rejected in dataset.rejected] == ["Bäume"]


def test_pictures_outside_the_folder_are_never_found(table: Make, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    root = table(f"image,labels\n0.jpg,a\n../secret.jpg,a\n{tmp_path}/secret.jpg,a\nlink.jpg,a\n")
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    dataset = read_table(root)
    assert dataset.files == ("images/0.jpg",)
    assert [r.file for r in dataset.rejected] == ["../secret.jpg", f"{tmp_path}/secret.jpg", "link.jpg"]


def test_a_linked_folder_that_leads_outside_is_not_searched(table: Make, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    root = table("image,labels\n0.jpg,a\na.jpg,a\nlinked/a.jpg,a\ninner/0.jpg,a\n")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    (root / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "images" / "more").mkdir()
    (root / "images" / "more" / "0.jpg").touch()
    (root / "images" / "inner").symlink_to(root / "images" / "more")
    dataset = read_table(root)
    assert dataset.files == ("images/0.jpg", "images/inner/0.jpg")
    assert [(r.file, r.reason) for r in dataset.rejected] == [
        ("a.jpg", "outside the data folder"),
        ("linked/a.jpg", "outside the data folder"),
    ]


def test_names_with_blanks_and_letters_of_any_script(table: Make) -> None:
    names = ["ein Bild.jpg", "größe.jpg", "写真.jpg", "a'b.jpg", "..jpg", "x..y.jpg"]
    root = table("image,labels\n" + "".join(f"{name},a\n" for name in names))
    for name in names:
        (root / "images" / name).touch()
    assert read_table(root).files == tuple(f"images/{name}" for name in names)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"train": ""}, "train.csv: the table is empty"),
        ({"train": "image,labels\n"}, "a header and no rows"),
        ({"train": "image\n0.jpg\n"}, "one column only"),
        ({"train": "image,colour\n0.jpg,red\n"}, "no column of labels among 'colour'"),
        ({"train": "image,a,a\n0.jpg,1,1\n"}, "'a' is there twice"),
        ({"train": "image,labels\n0.jpg,a\n", "val": "image,labels\n1.jpg,zebra\n"}, "1.jpg has the label 'zebra'"),
        ({"train": "image,labels\n0.jpg,a\n", "val": "image,name\n1.jpg,a\n"}, "val.csv: column 'labels' is missing"),
        ({"train": "image,a,b\n0.jpg,1,0\n", "val": "image,a\n1.jpg,1\n"}, "val.csv: column 'b' is missing"),
        ({"train": "image,a\n0.jpg,1\n", "val": "image,a,b\n1.jpg,1,0\n"}, "val.csv: column 'b' is unknown"),
        ({"train": "image,a\n0.jpg,1\n", "val": "image,a\n1.jpg,2\n"}, "val.csv: column 'a' is a label and may hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_tables_are_told_in_a_line(table: Make, tables: dict[str, str], words: str) -> None:
    root = table(**tables)
    with pytest.raises(InputError) as error:
        read_table(root)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{root}/")  # the one among all folders of a user
    assert "\n" not in str(error.value)


def test_the_study_s_whole_table(photographs: Path, tmp_path: Path) -> None:
    """30,000 rows with the published quirks, each with its own labels."""
    text = (photographs / "study_labels" / "train.csv").read_bytes()
    (tmp_path / "train.csv").write_bytes(text)
    (tmp_path / "images").mkdir()
    for line in text.decode().splitlines():
        name = line.partition(",")[0]
        if name.endswith(".jpg"):
            (tmp_path / "images" / name).touch()
    dataset = read_table(tmp_path)
    assert len(dataset.files) == 30_000
    assert len(dataset.labels) == 18
    assert not dataset.rejected


def test_a_column_of_nothing_is_ignored(table: Make) -> None:
    rows = "".join(f"{i}.jpg,{i % 2},\n" for i in range(24))
    assert read_table(table("image,cat,remark\n" + rows)).labels == ("cat",)


def test_a_stray_quote_after_ids_that_are_numbers(table: Make) -> None:
    rows = "".join(f"{i},cat dog,{chr(34) if i % 5 == 0 else ''}a caption\n" for i in range(24))
    assert len(read_table(table("id,labels,caption\n" + rows)).files) == 24


def test_a_stray_quote_before_the_labels(table: Make) -> None:
    rows = "".join(f"{i}.jpg,{chr(34) if i % 5 == 0 else ''}a caption,cat dog\n" for i in range(24))
    dataset = read_table(table("image,caption,labels\n" + rows))
    assert dataset.targets.all()
    assert dataset.targets.shape == (24, 2)

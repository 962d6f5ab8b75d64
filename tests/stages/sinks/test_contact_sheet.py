"""The contact sheet: bounded, evenly spread, and a picture worth looking at."""

import numpy as np
import pytest
from PIL import Image

from conf.errors import UserError
from stages.sinks.contact_sheet import CELL_WIDTH, ContactSheet


def frames(count, height=12, width=16, value=100):
    return np.full((count, height, width, 3), value, np.uint8)


@pytest.mark.parametrize("total", [1, 2, 5, 6, 7, 12, 13, 100, 1000, 4321])
@pytest.mark.parametrize("block", [1, 7, 48])
def test_the_sample_is_bounded_and_evenly_spread(total, block):
    sheet, most = ContactSheet(columns=3, rows=2), 0
    for first in range(0, total, block):
        sheet.add(frames(min(block, total - first)))
        most = max(most, len(sheet._kept))
    chosen = sheet.chosen
    assert most <= 12 and len(chosen) == min(6, total) and chosen[0] == 0
    assert total - 1 - chosen[-1] < sheet.stride
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= sheet.stride


def test_the_sheet_is_a_picture(tmp_path):
    sheet = ContactSheet(fps=16)
    for i in range(40):
        sheet.add(frames(12, 384, 704, value=6 * i))
    sheet.save(tmp_path / "sheet.png")
    picture = Image.open(tmp_path / "sheet.png")
    assert picture.width > 6 * CELL_WIDTH and picture.format == "PNG" and picture.mode == "RGB"
    assert picture.getpixel((2, 2)) == (250, 249, 246)
    assert picture.getpixel((30, 30)) == (0, 0, 0)


def test_fewer_frames_than_cells_make_a_smaller_sheet(tmp_path):
    sheet = ContactSheet()
    sheet.add(frames(2))
    sheet.save(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (48 + 2 * 16 + 12, 48 + 12 + 20)


def test_time_stamps():
    sheet = ContactSheet(fps=16)
    stamps = {0: "0:00.0", 40: "0:02.5", 16 * 75: "1:15.0", 16 * 3725: "1:02:05.0"}
    assert {number: sheet._stamp(number) for number in stamps} == stamps
    assert ContactSheet()._stamp(7) == "frame 7"


def test_the_frames_may_be_reused_by_the_caller():
    sheet, frame = ContactSheet(), frames(1)
    sheet.add(frame)
    frame[:] = 0
    assert sheet._kept[0][1].getpixel((0, 0)) == (100, 100, 100)


def test_nothing_to_show_and_nowhere_to_write(tmp_path):
    sheet = ContactSheet()
    sheet.save(tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
    sheet.add(frames(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"sink.contact_sheet=.*cannot be written"):
        sheet.save(tmp_path / "file" / "sheet.png")

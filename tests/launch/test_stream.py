"""The main job as a process: playable files whatever ends it, live input equal to the same from a file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

import devices
from launch import stream
from stages.sources.audio_file import AudioFile
from tests.patience import PATIENT_S

ROOT = Path(__file__).parents[2]


def start(*overrides: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.stream", "model=nano", *overrides],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen, data: bytes | None = None) -> tuple[str, str]:
    out, err = process.communicate(data, timeout=PATIENT_S)
    return out.decode(), err.decode()


def decoded(path: Path) -> tuple[int, float]:
    """(frames, seconds of sound) that a player gets out of a file."""
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames, 0.0
        rate = container.streams.audio[0].rate
        return frames, sum(f.samples for f in container.decode(audio=0)) / rate


def wait_for(path: Path, size: int, process: subprocess.Popen) -> None:
    """Until a file has grown to `size` bytes."""
    deadline = time.monotonic() + PATIENT_S
    while not (path.exists() and path.stat().st_size >= size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_everything_it_promises(job, speech):
    face = job.folder.parent / "face.png"
    Image.new("RGB", (50, 70), (200, 150, 100)).save(face)
    report = job(
        "model=nano", f"source.audio={speech}", f"source.image={face}", "sink.contact_sheet=${output_dir}/sheet.png"
    )
    # Two seconds of sound at 16 fps are 32 frames: three chunks of twelve.
    assert (report["chunks"], report["frames"]) == (3, 36)
    frames, seconds = decoded(job.folder / "video.mp4")
    assert frames == 36
    assert abs(seconds - 36 / 16) <= 1 / 16
    assert Image.open(job.folder / "sheet.png").size[0] > 100
    assert (job.folder / "config.yaml").read_text().startswith("model:")
    trace = json.loads((job.folder / "trace.json").read_text())
    assert {e["name"] for e in trace} >= {"encode", "prefill", "step0", "step3", "decode", "output"}
    assert set(report["stages"]) == {"encode", "prefill", "step0", "step1", "step2", "step3", "decode", "output"}
    expected = {
        "model", "plan", "launcher", "device", "workers", "chunks", "frames", "fps", "realtime_factor",
        "time_to_first_frame_s", "control_to_frame_s", "chunk_latency_s", "frame_jitter_s", "peak_memory_bytes",
        "weight_bytes", "stages", "latents_sha256", "versions",
    }  # fmt: skip
    assert expected <= set(report)


def test_without_a_video_no_decoder_is_loaded(job, monkeypatch):
    from runtime import run

    monkeypatch.setattr(run, "fast_decoder", None)
    assert job("model=nano", "sink.video=null", "stream.chunks=1")["chunks"] == 1


def test_a_signal_ends_the_stream_cleanly(tmp_path):
    process = start(f"output_dir={tmp_path}")
    wait_for(tmp_path / "video.mp4", 20_000, process)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "WARNING: source.image is not set" in err
    report = json.loads((tmp_path / "report.json").read_text())
    frames, seconds = decoded(tmp_path / "video.mp4")
    assert frames == report["frames"] > 0
    assert abs(seconds - frames / 16) <= 1 / 16
    assert report["latents_sha256"] in out


def test_a_killed_stream_leaves_a_playable_video(tmp_path):
    process = start(f"output_dir={tmp_path}")
    wait_for(tmp_path / "video.mp4", 60_000, process)
    process.kill()
    process.wait()
    frames, _ = decoded(tmp_path / "video.mp4")
    assert frames > 0


def test_live_sound_gives_what_the_file_gives(job, speech, tmp_path):
    expected = job("model=nano", f"source.audio={speech}", "sink.video=null")
    source = AudioFile(speech)
    pcm = np.round(source.read(10**6) * 32768).astype("<i2").tobytes()
    live = ("source.audio=-", "source.pace=free")
    process = start(f"output_dir={tmp_path}/live", "sink.video=null", *live, stdin=subprocess.PIPE)
    # In uneven pieces, with pauses, as sound arrives.
    for i in range(0, len(pcm), 7001):
        process.stdin.write(pcm[i : i + 7001])
        process.stdin.flush()
        time.sleep(0.01)
    _, err = finish(process)
    assert process.returncode == 0, err
    report = json.loads((tmp_path / "live" / "report.json").read_text())
    assert report["chunks"] == expected["chunks"]
    assert report["latents_sha256"] == expected["latents_sha256"]


PROCESSES = ("plan=timestep", "plan.workers=2", "launcher.threads=false")


def test_live_sound_reaches_a_worker_in_a_process_of_its_own(nano, speech, tmp_path):
    """Its standard input is for its orders; the run's comes beside it."""
    pcm = np.round(AudioFile(speech).read(10**6) * 32768).astype("<i2").tobytes()
    live = ("source.audio=-", "source.pace=free")
    process = start(f"output_dir={tmp_path}", "sink.video=null", *live, *PROCESSES, stdin=subprocess.PIPE)
    _, err = finish(process, pcm)
    assert process.returncode == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["latents_sha256"] == nano(f"source.audio={speech}")


def test_a_gpu_that_is_not_used_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        devices, "idle_gpu", lambda: ("there is a GPU (/dev/nvidia0), and torch has no CUDA", "install one")
    )
    base = ("model=nano", "stream.chunks=1", "sink.video=null", f"output_dir={tmp_path}")
    told = "device=auto computes on the CPU: there is a GPU (/dev/nvidia0), and torch has no CUDA; install one\n"
    for device in ("auto", "cpu"):
        assert stream.main([*base, f"device={device}"]) == 0
        assert (told in capsys.readouterr().err) == (device == "auto")


def test_a_closed_standard_input_is_told_to_who_reads_it(job, tmp_path, monkeypatch):
    process = start(f"output_dir={tmp_path}", "source.audio=-", *PROCESSES, preexec_fn=lambda: os.close(0))
    monkeypatch.setattr(sys, "stdin", None)
    base = ("model=nano", "sink.video=null", "stream.chunks=1")
    assert job(*base)["chunks"] == 1
    for source in ("audio", "actions"):
        job.folder = tmp_path / source
        line = job.fails(*base, f"source.{source}=-")
        assert line.startswith(f"source.{source}=-: standard input is closed; ")
    _, err = finish(process)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert "error: source.audio=-: standard input is closed; " in err


def test_orders_from_a_closed_standard_input(job, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    line = job.fails("model=nano", "sink.video=null", "control=-")
    assert line.startswith("control=-: standard input is closed; ")


def test_live_actions_give_what_the_file_gives(job, tmp_path):
    lines = [{"frame": f, "action": a} for f, a in ((0, "forward"), (9, "left"), (30, "none"), (47, "right"))]
    path = tmp_path / "keys.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ("stream.chunks=5", "sink.video=null")
    expected = job("model=nano", f"source.actions={path}", *base)["latents_sha256"]
    assert expected != job("model=nano", *base)["latents_sha256"]
    live = ("source.actions=-", "source.pace=free")
    process = start(f"output_dir={tmp_path}/live", *base, *live, stdin=subprocess.PIPE)
    for line in path.read_bytes().splitlines(keepends=True):
        process.stdin.write(line)
        process.stdin.flush()
        time.sleep(0.05)
    _, err = finish(process)
    assert process.returncode == 0, err
    assert json.loads((tmp_path / "live" / "report.json").read_text())["latents_sha256"] == expected


def test_a_signal_releases_a_stream_that_waits_for_live_sound(tmp_path):
    process = start(f"output_dir={tmp_path}", "source.audio=-", stdin=subprocess.PIPE)
    process.stdin.write(bytes(32000 * 2))
    process.stdin.flush()
    wait_for(tmp_path / "video.mp4", 500, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=PATIENT_S)
    assert process.returncode == 0
    frames, _ = decoded(tmp_path / "video.mp4")
    assert frames == json.loads((tmp_path / "report.json").read_text())["frames"] == 24


def test_a_multirun_gives_every_job_its_own_folder(tmp_path):
    process = start("stream.chunks=1", "stream.seed=1,2", f"output_dir={tmp_path}", "--multirun")
    _, err = finish(process)
    assert process.returncode == 0, err
    hashes = {json.loads((tmp_path / n / "report.json").read_text())["latents_sha256"] for n in "01"}
    assert len(hashes) == 2


def test_everframe_is_the_same_command():
    found = subprocess.run([sys.executable, "-m", "launch", "steam"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    known = "stream, serve, plan, inspect, doctor, bench, join, evaluate, distill, scripts, new-family"
    assert found.stderr == f"error: everframe steam: needs a command; did you mean stream? (known: {known})\n"

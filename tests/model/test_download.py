"""A model of the hub is downloaded once, however many processes need it, and what is not needed is not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmcoref.data.hub import fetch
from mmcoref.errors import UserError

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A model hub on the loopback, with one repository that serves a folder, and files that nobody needs."""

    def __init__(self, folder: Path) -> None:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        files |= {"original/consolidated.00.pth": b"0" * 1000, "original/model.safetensors": b"0" * 1000, "pytorch_model.bin": b"0" * 1000}
        self.sent: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/someone/llama/tree"):
                    tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files.items()]
                    return self.answer(json.dumps(tree).encode())
                if path.startswith("/api/models/someone/llama"):
                    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                    return self.answer(json.dumps({"id": "someone/llama", "sha": REVISION, "siblings": siblings}).encode())
                name = path.removeprefix("/someone/llama/resolve/").partition("/")[2]
                if name not in files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                if self.command == "GET":
                    hub.sent[name] += 1
                self.answer(files[name], hashlib.sha256(files[name]).hexdigest())

            do_HEAD = do_GET

            def answer(self, body: bytes, etag: str | None = None) -> None:
                self.send_response(200)
                if etag:
                    self.send_header("ETag", f'"{etag}"')
                    self.send_header("X-Repo-Commit", REVISION)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(llama_folder: Path) -> Iterator[Hub]:
    one = Hub(llama_folder)
    yield one
    one.server.shutdown()


@pytest.mark.parametrize("weights", [False, True])
def test_processes_that_fetch_at_once_download_each_file_once(hub: Hub, llama_folder: Path, weights: bool) -> None:
    program = f"from mmcoref.data.hub import fetch; print(fetch('someone/llama', weights={weights}))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").resolve()), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    folders = [process.communicate(timeout=100)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert folders[0] == folders[1]
    wanted = {path.name for path in llama_folder.iterdir() if weights or path.suffix != ".safetensors"}
    assert any(name.endswith(".safetensors") for name in wanted) is weights
    assert hub.sent == dict.fromkeys(wanted, 1)
    assert {path.name for path in Path(folders[0]).iterdir()} == wanted


def test_a_hub_that_gives_nothing_is_named() -> None:
    program = "from mmcoref.data.hub import fetch; fetch('someone/llama')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(Path("hf").resolve()), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100)
    assert "UserError: model.name 'someone/llama': cannot be downloaded from http://127.0.0.1:9" in done.stderr


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(UserError, match=r"hub: could not be written: a file is where its folder should be; .* HF_HOME"):
        fetch("owner/model")

"""A published model takes its card along; the hub is a server on this machine that keeps what it gets."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from workshop import STEPS, Workshop


class StandInHub(BaseHTTPRequestHandler):
    """The few requests by which a model is created and files are committed; every file travels in the commit itself."""

    def do_GET(self):
        self._answer({"id": "someone/model", "sha": "0" * 40, "siblings": [], "name": "someone", "type": "user"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            files = [entry["value"] for entry in entries if entry["key"] == "file"]
            self.server.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
            self._answer({"commitUrl": f"{self.server.url}/someone/model/commit/1", "commitOid": "1" * 40})
        else:
            self._answer({"url": f"{self.server.url}/someone/model", "name": "someone/model"})

    def _answer(self, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInHub)
    server.commits, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_published_model_takes_its_card_along(tmp_path, axolotl_runs, hub):
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    workshop = Workshop(tmp_path, axolotl_runs)
    output = workshop.launch("published", environment=environment, hub_model_id="someone/model", save_steps=STEPS)
    published = {name: content for commit in hub.commits for name, content in commit.items()}
    assert "model.safetensors" in published
    assert (
        json.loads(published["pair_pm.json"])["checked"] == json.loads((output / "pair_pm.json").read_text())["checked"]
    )

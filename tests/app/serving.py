"""The page, served by this process while a test looks at it."""

import os
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from eomt.app.limits import Limits
from eomt.app.models import find_models
from eomt.app.predictor import Predictor


@contextmanager
def served(models: list[Path], folder: Path, **limits):
    """→ (address, predictor); temporary files go to `folder`."""
    import uvicorn

    from eomt.app.server import build_app

    before = os.environ.copy(), tempfile.tempdir
    predictor = Predictor(find_models([str(model) for model in models], "cpu"), Limits(**limits))
    try:
        app = build_app(predictor, predictor.limits, folder)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/", predictor
            server.should_exit = True
            thread.join(10)
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        tempfile.tempdir = before[1]

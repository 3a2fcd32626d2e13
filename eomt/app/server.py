"""The server: one temporary folder, one port, limits; `eomt serve` runs it until interrupted."""

import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from .limits import Limits
from .models import find_models
from .predictor import Predictor

NO_SCRIPT = (
    '<noscript><p style="margin: 2em; font: 1em sans-serif">This page needs JavaScript. Without it: '
    "<code>eomt predict PHOTOS --model MODEL --output FOLDER</code> writes the same segments to files.</p></noscript>"
)


def require_port(host: str, port: int) -> None:
    """`ValueError` unless the server can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"port {port} of {host} cannot be used ({error.strerror}); choose another --port") from None


def serve(models: list[str], host: str, port: int, limits: Limits, device: str | None = None) -> None:
    """Serve the page until interrupted; the temporary folder is deleted then.

    Raises:
        ValueError: when a model, the port or the package gradio is missing.
    """
    require_port(host, port)
    found = find_models(models, device)
    folder = Path(tempfile.mkdtemp(prefix="eomt-serve-"))
    try:
        import uvicorn

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder is deleted then too

        app = build_app(Predictor(found, limits), limits, folder)
        print(f"{', '.join(found)}: http://{host}:{port} (Ctrl+C ends it)", flush=True)
        uvicorn.run(app, host=host, port=port, log_level="warning")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_app(predictor: Predictor, limits: Limits, folder: Path):
    """→ the FastAPI application. Gradio's own files go below `folder` too."""
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    tempfile.tempdir = str(folder)  # uploads are written here before Gradio moves them
    import gradio as gr
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse

    from .page import build_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def say_without_script(request: Request, call_next):
        response = await call_next(request)
        if request.url.path != "/" or not response.headers.get("content-type", "").startswith("text/html"):
            return response
        text = b"".join([part async for part in response.body_iterator]).decode("utf-8")
        start = text.find(">", text.find("<body")) + 1
        return HTMLResponse(text[:start] + NO_SCRIPT + text[start:], response.status_code)

    here, page = Path(__file__).parent, build_page(predictor, limits, folder)
    page.has_launched = True  # mounted pages are not; until then Gradio opens any file that a request names
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        max_file_size=f"{limits.upload_megabytes}mb",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
        ),
        head=f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script>",
        css=(here / "page.css").read_text(encoding="utf-8"),
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
    )

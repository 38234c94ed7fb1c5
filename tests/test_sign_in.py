"""Signing in by OpenID Connect in a real Chromium, at a provider of this machine; what lacks is said in a sentence."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from advisor import pipeline
from tests.test_browser import CHROMIUM, ROOT, SECOND, browser, free_port, wait_until_healthy  # noqa: F401

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium found on PATH: install Debian's `chromium`"),
]
needs_authlib = pytest.mark.skipif(importlib.util.find_spec("authlib") is None, reason="Authlib is not installed")
WITHOUT_AUTHLIB = "import sys; sys.modules['authlib'] = None\nfrom streamlit.web.cli import main\nmain()"


@pytest.fixture
def provider() -> Iterator[str]:
    """The address of a provider that knows Ann, and asks no password."""
    mock = pytest.importorskip("oidc_provider_mock", reason="oidc-provider-mock is not installed")
    ann = mock.User(sub="ann", claims={"email": "ann@example.org"})
    with mock.run_server_in_thread(user_claims=[ann]) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def page(browser):  # noqa: F811
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(25 * SECOND)
    return page


@pytest.fixture
def serve(tmp_path, data_folder) -> Iterator[Callable[..., str]]:
    """Starts the app with these lines of `[auth]`; returns its address."""
    with ExitStack() as running:
        yield lambda auth, authlib=True: running.enter_context(_served(tmp_path, auth, authlib))


@contextmanager
def _served(folder: Path, auth: str, authlib: bool) -> Iterator[str]:
    port = free_port()
    program = ["-m", "streamlit"] if authlib else ["-c", WITHOUT_AUTHLIB]
    command = [
        sys.executable,
        *program,
        "run",
        str(ROOT / "app.py"),
        "--server.port",
        str(port),
        "--server.address",
        "127.0.0.1",
    ]
    secrets = folder / "secrets.toml"
    secrets.write_text(f'[auth]\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\n{auth}')
    command += ["--server.port", str(port), "--secrets.files", str(secrets)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _auth(provider: str) -> str:
    return (
        'cookie_secret = "a secret of this test, long enough"\nclient_id = "advisor"\nclient_secret = "known to both"\n'
        f'server_metadata_url = "{provider}/.well-known/openid-configuration"\n'
    )


@needs_authlib
def test_who_signs_in_is_named_owns_the_jobs_and_signs_out(serve, page, provider):
    page.goto(serve(_auth(provider)))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="ann").click()
    page.get_by_text("ann@example.org").wait_for()
    page.get_by_role("button", name="Look inside").click()
    page.get_by_text("Looking inside smollm2").wait_for()
    assert [job.person for job in pipeline.open_store().jobs()] == ["ann@example.org"]
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="End session").click()  # the provider asks, and sends back
    page.get_by_role("button", name="Sign in").wait_for()
    assert page.get_by_text("ann@example.org").count() == 0


@pytest.mark.parametrize(
    "authlib, auth, sentence",
    [
        (False, _auth("http://127.0.0.1:1"), 'pip install "streamlit[auth]"'),
        pytest.param(True, 'cookie_secret = "x"\n', "client_id", marks=needs_authlib),
    ],
)
def test_what_signing_in_lacks_is_said_in_a_sentence(serve, page, authlib, auth, sentence):
    page.goto(serve(auth, authlib))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_test_id("stAlert").get_by_text(sentence).wait_for()
    assert page.get_by_test_id("stException").count() == 0

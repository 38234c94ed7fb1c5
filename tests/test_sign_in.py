"""Signing in by OpenID Connect in a real Chromium, at a provider of this machine; what lacks is said in a sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from advisor import pipeline
from tests.chromium import BROWSER, SECOND, chromium, free_port, new_page, served, sync_api

pytestmark = BROWSER
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
def page() -> Iterator[sync_api.Page]:
    with chromium() as browser:
        yield new_page(browser, 25 * SECOND)


@pytest.fixture
def serve(tmp_path, data_folder) -> Iterator[Callable[..., str]]:
    """Starts the app with these lines of `[auth]`; returns its address."""
    with ExitStack() as running:
        yield lambda auth, authlib=True: running.enter_context(_served(tmp_path, auth, authlib))


def _served(folder: Path, auth: str, authlib: bool) -> AbstractContextManager[str]:
    port, secrets = free_port(), folder / "secrets.toml"
    secrets.write_text(f'[auth]\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\n{auth}')
    options = ["--server.address", "127.0.0.1", "--secrets.files", str(secrets)]
    return served(folder, port, options, ("-m", "streamlit") if authlib else ("-c", WITHOUT_AUTHLIB))


def _auth(provider: str) -> str:
    return (
        'cookie_secret = "a secret of this test, long enough"\nclient_id = "advisor"\nclient_secret = "known to both"\n'
        f'server_metadata_url = "{provider}/.well-known/openid-configuration"\n'
    )


@needs_authlib
def test_who_signs_in_is_back_at_the_link_is_named_owns_the_jobs_and_signs_out(serve, page, provider):
    address = serve(_auth(provider))
    page.goto(f"{address}/guide?topic=methods")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="ann", exact=True).click()
    page.wait_for_url(f"{address}/guide?topic=methods")
    page.get_by_text("ann@example.org").wait_for()
    page.get_by_test_id("stTopNav").get_by_role("link", name="Model").click()
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

"""Who looks at this page: signed in through OpenID Connect where that is set up, else one browser session."""

from __future__ import annotations

import uuid

import streamlit as st
from streamlit.errors import StreamlitAuthError, StreamlitMissingAuthlibError


def person() -> str:
    """Who asks for jobs, so that the queue can serve persons in turn: the signed-in address, else this session.

    A session is known by a random number that lives as long as it does; nothing is kept in the browser.
    """
    return signed_in() or st.session_state.setdefault("person", f"session-{uuid.uuid4().hex[:12]}")


def signed_in() -> str:
    """The address of who is signed in, or what else the provider knows them by; empty without sign-in."""
    if not st.user.get("is_logged_in"):
        return ""
    return str(st.user.get("email") or st.user.get("sub") or "")


def sign_in() -> None:
    """A button to sign in or out; nothing where `[auth]` is not in Streamlit's secrets."""
    if "is_logged_in" not in st.user:  # there only where signing in is set up
        return
    user = signed_in()
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
        if user:
            st.caption(f":material/person: {user}", width="content")
            st.button("Sign out", on_click=st.logout, type="tertiary", help="Jobs that you started run on.")
            return
        wanted = st.button(
            "Sign in",
            icon=":material/login:",
            type="tertiary",
            key="sign_in",
            help="Through your organization's login. Then your jobs are yours in every browser.",
        )
    if wanted:
        _log_in()


def _log_in() -> None:
    """Leave for the provider. Not a callback: what fails in one takes the place of the whole page."""
    try:
        st.login()
    except StreamlitMissingAuthlibError:
        st.error('Signing in needs Authlib on the server: `pip install "streamlit[auth]"`, then start it again.')
    except StreamlitAuthError as error:
        st.error(f"Signing in is not set up rightly: {' '.join(str(error).split())}")

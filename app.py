"""The web page's door: page configuration, navigation, run."""

import streamlit as st

from advisor.ui.common import PAGES

st.set_page_config(page_title="Quantization Advisor", page_icon="⚖️", layout="wide")


def _model() -> None:
    """Answers `/model`: the default page itself is served at the root of the address alone."""
    st.switch_page(PAGES["model"], query_params=dict(st.query_params))


st.navigation(
    [
        st.Page(PAGES["model"], title="Model", icon=":material/deployed_code:", url_path="start", default=True),
        st.Page(_model, title="Model", url_path="model", visibility="hidden"),
        st.Page(PAGES["sensitivity"], title="Sensitivity", icon=":material/grid_on:", url_path="sensitivity"),
        st.Page(PAGES["plan"], title="Plan", icon=":material/balance:", url_path="plan"),
        st.Page(PAGES["apply"], title="Apply and evaluate", icon=":material/verified:", url_path="apply"),
        st.Page(PAGES["blind"], title="Blind test", icon=":material/how_to_vote:", url_path="blind"),
        st.Page(PAGES["history"], title="History", icon=":material/history:", url_path="history"),
        st.Page(PAGES["guide"], title="Guide", icon=":material/menu_book:", url_path="guide"),
    ],
    position="top",
).run()

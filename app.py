"""The web page's door: page configuration, navigation, run."""

import streamlit as st

from advisor.ui.common import PAGES

st.set_page_config(page_title="Quantization Advisor", page_icon="⚖️", layout="wide")

st.navigation(
    [
        st.Page(PAGES["model"], title="Model", icon=":material/deployed_code:", url_path="model", default=True),
        st.Page(PAGES["sensitivity"], title="Sensitivity", icon=":material/grid_on:", url_path="sensitivity"),
        st.Page(PAGES["plan"], title="Plan", icon=":material/balance:", url_path="plan"),
        st.Page(PAGES["apply"], title="Apply and evaluate", icon=":material/verified:", url_path="apply"),
        st.Page(PAGES["blind"], title="Blind test", icon=":material/how_to_vote:", url_path="blind"),
        st.Page(PAGES["history"], title="History", icon=":material/history:", url_path="history"),
    ],
    position="top",
).run()

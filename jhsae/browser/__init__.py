"""The feature browser: what its page shows, gathered from an SAE and a store, and the page itself."""

from jhsae.browser.gather import Limits as Limits
from jhsae.browser.gather import gather as gather
from jhsae.browser.page import MARKER as MARKER
from jhsae.browser.page import render as render

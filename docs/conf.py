"""How Sphinx makes the documentation's site of these pages: `make docs`. The pages are plain Markdown, to be read on a code host, too."""

project = "tuunel"
author = "the tuunel developers"
extensions = ["myst_parser"]
exclude_patterns = ["README.md"]  # index.md shows it, and adds the site's navigation

myst_heading_anchors = 4  # as code hosts do: a link to a heading that is not there is an error
highlight_language = "text"  # transcripts and layouts; a fence that names its language gets it

html_theme = "furo"
html_title = "tuunel"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_use_index = False  # an index of Python names, of which there are none
html_theme_options = {"footer_icons": []}

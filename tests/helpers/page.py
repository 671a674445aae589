"""An HTML page as the tests of reports look at it."""

import base64
import html.parser
import io

import numpy as np
from matplotlib import image


class Page(html.parser.HTMLParser):
    """Collects the text, the tags, links and pictures; refuses tags that are not closed."""

    def __init__(self, content):
        super().__init__()
        self.text, self.open, self.tags, self.pictures, self.sources = "", [], [], [], []
        self.content = content
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.pictures.append((values["src"], values["alt"]))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def picture(self, alt):
        """uint8 `[height, width, 3]` of the one picture whose alternative text begins so."""
        (source,) = [source for source, text in self.pictures if text.startswith(alt)]
        pixels = image.imread(io.BytesIO(base64.b64decode(source.split(",")[1])))
        return np.round(255 * pixels[..., :3]).astype(np.uint8)


def page_of(path):
    """The page in a file, which needs nothing beside it: its pictures, style and scripts are in it."""
    page = Page(path.read_text(encoding="utf-8"))
    assert "link" not in page.tags and "@import" not in page.content and "url(" not in page.content
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert all(alt for _, alt in page.pictures)
    return page

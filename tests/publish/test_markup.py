from __future__ import annotations

import json

from fib_tools.publish.markup import Html, breakable, embed_json, join, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("b", "1 < 2", tag("i", "&")) == "<b>1 &lt; 2<i>&amp;</i></b>"
    assert join(["<", Html("<br>")], ", ") == "&lt;, <br>"


def test_attributes_are_escaped_and_named_as_html_has_them() -> None:
    written = tag("a", class_='"x"', aria_label="<", data_m="1", viewBox="0", hidden=True, title=None, open=False)
    assert written == '<a class="&quot;x&quot;" aria-label="&lt;" data-m="1" viewBox="0" hidden></a>'
    assert tag("meta", name="n") == '<meta name="n">'
    assert tag("use", href="#s") == '<use href="#s"/>'


def test_json_in_a_script_cannot_end_it() -> None:
    hostile = {"name": "</script><!--&\u2028"}
    written = embed_json(hostile)
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == hostile


def test_a_name_breaks_after_its_joints_only() -> None:
    assert breakable("a_b/c<d__e_") == "a_<wbr>b/<wbr>c&lt;d__<wbr>e_"

"""The page itself: what is shown, and what happens at each touch. Needs the extra `app` (gradio)."""

import html
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

# before gradio: it reads them when it is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr  # isort: skip

from clipfh.app.appearance import CSS, HEAD, SCRIPT, THEME  # isort: skip
from clipfh.app.search import Category, Gallery, Hit, Query  # isort: skip
from clipfh.core.errors import InputError, shortened  # isort: skip

PAGE = 12  # hits of a stage at a time
MAX_HITS = 240  # of a stage: nobody looks further, and each of them is shown anew with every page
MAX_UPLOAD = "25mb"
MAX_TEXT = 2000  # characters; models read far fewer
KEPT_SECONDS = 3600  # of an abandoned session, and of what was uploaded in it
CAPTION_LENGTH = 160
ANY_CATEGORY = "all"
WELCOME = "Drop, paste or take a photo, or type what to find. A photo with a description looks for both at once."


@dataclass(frozen=True)
class Session:
    """What one visitor has asked for; the page keeps one for each.

    Attributes:
        vectors: the query's direction in each stage's space; empty before the first question.
        hits: of each stage, as far as they are shown.
        category: that they are of.
    """

    vectors: tuple[torch.Tensor, ...] = ()
    hits: tuple[tuple[Hit, ...], ...] = ()
    category: Category = ()


def serve(gallery: Gallery, host: str, port: int, *, blocking: bool = True) -> gr.Blocks:
    """Serve the page at `http://host:port`; port 0 takes a free one, which `local_url` of the returned page names.

    Raises:
        InputError: the port is taken.
    """
    page = build(gallery)
    page.queue(max_size=64, default_concurrency_limit=4)  # searches wait for the model one after another
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            show_error=False,  # a visitor gets messages of ours, and no traceback
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            run_history=False,  # which would keep every query in the browser
            enable_monitoring=False,
            ssr_mode=False,  # a server of Node's
            mcp_server=False,
            pwa=False,
            theme=THEME,
            css=CSS,
            head=HEAD,
            js=SCRIPT,
            quiet=True,  # it would recommend a public link
            prevent_thread_lock=True,
        )
    except OSError as error:  # gradio's message names its own arguments
        raise InputError(
            f"cannot listen on {host}, port {port} (taken, or no address of this machine); --port 0 takes a free port"
        ) from error
    print(f"the page is at {url} (Ctrl+C stops it)", flush=True)
    if blocking:
        page.block_thread()
    return page


def build(gallery: Gallery) -> gr.Blocks:
    """The page of a gallery: a query on top, below it a column of hits for each stage."""
    categories = {ANY_CATEGORY: (), **{" / ".join(names): names for names in gallery.categories}}
    example = next(iter(gallery.prompts.values()), "a red mug with a white rim")
    with gr.Blocks(
        analytics_enabled=False, title=f"Search {gallery.name}", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        session = gr.State(Session(), time_to_live=KEPT_SECONDS)
        asked_photo = gr.State(None, time_to_live=KEPT_SECONDS)  # the file that was uploaded, or the id of a hit
        gr.Markdown(f"# Search {gallery.name}\n{gallery.size}. Click a photo that was found to look for more like it.")
        with gr.Row():
            with gr.Column(min_width=280):
                photo = _photo_input()
            with gr.Column(min_width=280):
                text = gr.Textbox(
                    label="Description",
                    placeholder=f"such as: {shortened(example, 36)}",
                    max_length=MAX_TEXT,
                    elem_id="description",
                )
                category = gr.Dropdown(
                    list(categories),
                    value=ANY_CATEGORY,
                    label="Category",
                    visible=len(categories) > 1,
                    elem_id="category",
                )
                with gr.Row():
                    search = gr.Button("Search", variant="primary", min_width=120, elem_id="search")
                    clear = gr.Button("Clear", min_width=120, elem_id="clear")
        message = gr.HTML(_message(WELCOME), elem_id="message")
        with gr.Row(visible=False) as columns:
            found = [_column(number, stage.title) for number, stage in enumerate(gallery.stages)]
        more = gr.Button("More", visible=False, elem_id="more")

        shown = [session, message, columns, *found, more]
        asked = [asked_photo, text, category]
        answers = Answers(gallery, categories)
        quietly = {"api_visibility": "private", "show_progress": "minimal"}
        gr.on([search.click, text.submit], answers.ask, asked, shown, **quietly)
        category.input(answers.narrow, asked, shown, **quietly)
        # without gradio's reading of the photo, which ends in a bare "Error" where it is none
        brought = photo.input(
            partial(_uploaded, Path(photo.GRADIO_CACHE)), [photo], [asked_photo], preprocess=False, **quietly
        )
        brought.success(answers.take, asked, [photo, asked_photo, *shown], **quietly)
        more.click(answers.go_on, [session], shown, **quietly)
        clear.click(answers.clear, [], [photo, asked_photo, text, category, *shown], **quietly)
        for number, column in enumerate(found):
            outputs = [photo, asked_photo, text, *shown]
            column.select(answers.click_in(number), [category, session], outputs, **quietly)
    return page


def _photo_input() -> gr.Image:
    return gr.Image(
        label="Photo",
        sources=["upload", "clipboard", "webcam"],
        height=260,
        buttons=[],
        elem_id="photo",
        alt_text="The photo to search with",
    )


def _uploaded(uploads: Path, value: dict[str, Any] | None) -> Path | None:
    """The uploaded file itself, for the project's own decoder: gradio's would open it with whatever Pillow knows."""
    if not value or not value.get("path"):
        return None
    path = Path(value["path"]).resolve()
    if not path.is_relative_to(uploads.resolve()):  # a forged request names any file
        raise gr.Error("Only a photo that was uploaded here can be searched with.", print_exception=False)
    return path


def _column(number: int, title: str) -> gr.Gallery:
    with gr.Column(min_width=300):
        gr.Markdown(f"## {title}")
        return gr.Gallery(
            label=f"Found by {title}",
            show_label=False,
            columns=4,
            height="auto",
            allow_preview=False,  # a click makes the photo the next query
            interactive=False,
            format="jpeg",
            buttons=[],
            elem_id=f"found{number}",
            elem_classes="found",
        )


@dataclass(frozen=True)
class Answers:
    """What happens at each touch: from the values of the page's parts to new ones.

    Attributes:
        gallery: what is searched.
        categories: the choices of the page, with what they stand for.
    """

    gallery: Gallery
    categories: dict[str, Category]

    def ask(self, photo: Path | str | None, text: str, category: str) -> list:
        """Ask all stages for the first hits; what is wrong with the question is said in place of them."""
        try:
            return self._first_hits(photo, text, category)
        except InputError as error:
            return self._show(Session(), _message(str(error), is_error=True))

    def narrow(self, photo: Path | str | None, text: str, category: str) -> list:
        """Search within another category, once there is something to search with."""
        if not photo and not text.strip():
            return self._show(Session(), _message(WELCOME))
        return self.ask(photo, text, category)

    def take(self, photo: Path | str | None, text: str, category: str) -> list:
        """Search as soon as a photo is there, and put one away that cannot be read."""
        if not photo and not text.strip():  # it was taken away: nothing is left to ask
            return [None, None, *self._show(Session(), _message(WELCOME))]
        try:
            return [gr.skip(), gr.skip(), *self._first_hits(photo, text, category)]
        except InputError as error:
            return [None, None, *self._show(Session(), _message(str(error), is_error=True))]

    def _first_hits(self, photo: Path | str | None, text: str, category: str) -> list:
        query = Query((photo,) if photo else (), text)
        stages = range(len(self.gallery.stages))
        vectors = tuple(self.gallery.encode(query, stage) for stage in stages)
        cut = [self.gallery.stages[stage].title for stage in stages if self.gallery.is_cut(text, stage)]
        note = f"The description is too long for {', '.join(cut)}: its end was not read." if cut else ""
        return self.go_on(Session(vectors, ((),) * len(vectors), self.categories[category]), note)

    def go_on(self, session: Session, note: str = "") -> list:
        """The next hits of each stage below those that are there."""
        new = [
            tuple(self.gallery.nearest(vector, stage, PAGE, session.category, [hit.photo for hit in known]))
            for stage, (vector, known) in enumerate(zip(session.vectors, session.hits, strict=True))
        ]
        hits = tuple(known + more for known, more in zip(session.hits, new, strict=True))
        said = f"The {len(hits[0]):,} nearest photos. {note}" if hits[0] else "No photo of that category."
        is_end = all(len(more) < PAGE for more in new) or len(hits[0]) >= MAX_HITS
        return self._show(replace(session, hits=hits), _message(said), has_more=not is_end)

    def click_in(self, number: int) -> Callable[..., list]:
        """What a click on a hit of stage `number` does."""

        def click(category: str, session: Session, event: gr.SelectData) -> list:
            """Make the hit the next query, by its own file: the page shows a small copy of it."""
            chosen = session.hits[number][event.index].photo
            try:
                hits = self._first_hits(chosen, "", category)
            except InputError as error:  # what was found stays: there are others to click
                of_columns = [gr.skip()] * len(session.hits)
                message = _message(str(error), is_error=True)
                return [gr.skip(), gr.skip(), gr.skip(), gr.skip(), message, gr.skip(), *of_columns, gr.skip()]
            return [self.gallery.small_copy(chosen), chosen, "", *hits]

        return click

    def clear(self) -> list:
        """As it was in the beginning."""
        return [None, None, "", ANY_CATEGORY, *self._show(Session(), _message(WELCOME))]

    def _show(self, session: Session, message: str, *, has_more: bool = False) -> list:
        """The values of the session, the message, the columns with each stage's hits, and the button for more."""
        hits = session.hits or ((),) * len(self.gallery.stages)
        small_copy = self.gallery.small_copy
        pictures = [
            gr.Gallery([(small_copy(hit.photo), _caption(hit)) for hit in of_stage], selected_index=None)
            for of_stage in hits
        ]
        return [session, message, gr.Row(visible=bool(session.vectors)), *pictures, gr.Button(visible=has_more)]


def _caption(hit: Hit) -> str:
    caption = f"{hit.similarity:.2f}\u2002{hit.item_id or hit.photo}"  # a wide space, at which a long line breaks
    return f"{caption}\n{shortened(hit.prompt, CAPTION_LENGTH)}" if hit.prompt else caption


def _message(text: str, *, is_error: bool = False) -> str:
    """A line that screen readers read out when it changes."""
    kind = 'class="message is-error" role="alert"' if is_error else 'class="message" role="status"'
    return f"<div {kind}>{html.escape(text)}</div>"

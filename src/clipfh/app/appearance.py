"""How the page looks and is read out: the reader's own fonts, light and dark, from a phone's width up."""

import gradio as gr

# names, not gradio's GoogleFont: nothing is fetched
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(  # a contrast of 4.5 to 1 at least (WCAG AA), which gradio's own lack
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)

# Around all parts of the page, where the CSS below, which gradio confines to the parts, does not reach.
HEAD = """<style>
.gradio-container { width: 100%; max-width: 1600px !important; margin: auto; }
@media (max-width: 600px) { .gradio-container .fillable { padding: 12px !important; } }
</style>"""

# A caption below its photo, over several lines; gradio's own lies on the photo and is cut to one line. As tall as it
# takes: gradio's own would scroll inside the page, which is hard on a phone.
CSS = """
#message .html-container { padding: 0 !important; }
.found .grid-wrap { max-height: none !important; padding: 8px; }
.found .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important; }
.found .gallery-item, .found .thumbnail-item { height: auto; aspect-ratio: auto; }
.found .thumbnail-item img { aspect-ratio: 1; height: auto; object-fit: contain; background: #fff; }
.found .caption-label {
  position: static; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden;
  max-width: 100%; margin: 4px 0 6px; padding: 0 6px; border: 0; border-radius: 0; white-space: pre-line;
  text-align: left; font-size: 13px; line-height: 1.35; color: var(--body-text-color); background: none;
  overflow-wrap: anywhere; opacity: 1 !important;
}
.found button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.message { padding: 8px 12px; border-left: 4px solid var(--color-accent); color: var(--body-text-color); }
.message.is-error { border-color: #D55E00; }
"""

# gradio calls each button "Thumbnail 1 of 12", which hides what is in it from screen readers: its caption is its name.
# Its menu of categories stays open, over the button below, when it is left by the Tab key.
SCRIPT = """
() => {
  new MutationObserver(() => {
    for (const button of document.querySelectorAll(".found button.thumbnail-item")) {
      const caption = button.querySelector("img")?.alt;
      const name = `More like ${caption}`;
      if (caption && button.getAttribute("aria-label") !== name) button.setAttribute("aria-label", name);
    }
  }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["alt", "aria-label"] });
  document.addEventListener("focusout", (event) => {
    const menu = event.target.closest("#category input");
    const close = () => menu.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    if (menu) setTimeout(close, 200);
  });
}
"""

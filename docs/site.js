// Browsers do not let a page opened from a folder read the search index.
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    for (const field of document.querySelectorAll("[role=search] input")) {
      field.disabled = true;
      field.placeholder = "Search: python -m http.server";
    }
  });
}

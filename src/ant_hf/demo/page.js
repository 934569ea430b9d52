document.addEventListener("keydown", (event) => {
  const press = (id) => document.getElementById(id)?.click();
  const fragment = event.target.closest?.(".fragments .f");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.stopPropagation();
    press("generate");
  } else if (event.key === "Escape") {
    press("stop");
  } else if (fragment) {
    const all = [...fragment.parentElement.children], here = all.indexOf(fragment);
    const to = {ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1}[event.key];
    if (all[to]) {
      event.preventDefault();
      all[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      fragment.click();
    }
  }
}, true);

document.addEventListener("click", async (event) => {
  const copy = event.target.closest(".copy"), fragment = event.target.closest(".fragments .f");
  const choice = event.target.closest(".alternatives button");
  if (copy) {
    const text = copy.closest(".output").querySelector(".text");
    try {
      await navigator.clipboard.writeText(text.textContent);
      copy.textContent = "Copied";
    } catch {
      // Not every page may write there: one key is left to press.
      getSelection().selectAllChildren(text);
      copy.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  } else if (fragment) {
    fragment.parentElement.querySelector("[aria-selected=true]")?.removeAttribute("aria-selected");
    fragment.setAttribute("aria-selected", "true");
  } else if (choice) {
    // The button goes; who works with keys continues where it stood.
    const {model, index} = choice.dataset;
    document.querySelector(`#fragments-${model} [data-index="${index}"]`)?.focus();
  }
});

document.addEventListener("keydown", (event) => {
  const press = (id) => document.getElementById(id)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.stopPropagation();
    press("generate");
  } else if (event.key === "Escape") {
    press("stop");
  } else if (event.target.matches?.(".fragments .f")) {
    const all = [...event.target.parentElement.children], here = all.indexOf(event.target);
    const to = {ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1}[event.key];
    if (all[to]) {
      event.preventDefault();
      all[to].focus();
    }
  }
}, true);

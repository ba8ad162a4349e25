"use strict";
// Without this script the page shows every picture and level, one below the other. It adds the switches and the slider.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);

  const chosen = (group) => one("input:checked", group).value;

  const level = one("#level");
  if (level) {
    const show = () =>
      all(".level-panel").forEach((panel) => { panel.hidden = panel.dataset.level !== chosen(level); });
    level.addEventListener("change", show);
    show();
  }

  const viewer = one(".viewer");
  if (viewer) {
    const [left, right, picture, view] = ["#left", "#right", "#picture", "#view"].map((id) => one(id));
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50 });
    const handle = Object.assign(document.createElement("span"), { className: "handle" });
    const frames = all(".frame", viewer);

    const move = () => {
      viewer.style.setProperty("--at", `${range.value}%`);
      range.setAttribute("aria-valuetext", `${range.value}% ${left.value}, the rest ${right.value}`);
    };

    const show = () => {
      const number = picture ? Number(picture.value) : 0;
      all("section.picture", viewer).forEach((section, index) => { section.hidden = index !== number; });
      const frame = frames[number];
      if (range.parentNode !== frame) frame.append(range, handle);
      all("figure", frame).forEach((figure) => {
        const isLeft = figure.dataset.version === left.value;
        const isRight = figure.dataset.version === right.value;
        figure.hidden = !isLeft && !isRight;
        figure.classList.toggle("left", isLeft && !isRight);
        figure.classList.toggle("right", isRight && !isLeft);
      });
      if (view) viewer.dataset.view = chosen(view);
      range.setAttribute("aria-label", `Boundary between ${left.value} and ${right.value}`);
      move();
    };

    viewer.classList.add("live");
    range.addEventListener("input", move);
    [left, right, picture, view].forEach((control) => control && control.addEventListener("change", show));
    show();
  }

  document.documentElement.classList.add("script");
})();

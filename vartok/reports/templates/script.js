"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const model = document.getElementById("model");

function cut(picture, percent) {
  picture.querySelector(".cut").value = percent;
  picture.querySelector(".frame").style.setProperty("--cut", percent + "%");
}

function copyAt(picture, place) {
  const copies = all(".copy", picture).filter((copy) => copy.dataset.model === (model ? model.value : "0"));
  return copies[Math.min(place, copies.length) - 1]; // checkpoints may have different numbers of scales
}

function show(picture) {
  const slider = picture.querySelector(".scales");
  const shown = copyAt(picture, slider ? Number(slider.value) : 1);
  for (const copy of all(".copy", picture)) copy.hidden = copy !== shown;
  picture.querySelector(".text").value = shown.dataset.text;
  if (slider) slider.setAttribute("aria-valuetext", shown.dataset.text);
}

const pictures = all(".picture");
for (const picture of pictures) {
  picture.querySelector(".cut").addEventListener("input", (event) => cut(picture, event.target.value));
  picture.querySelector(".scales")?.addEventListener("input", () => show(picture));
  cut(picture, picture.querySelector(".cut").value); // browsers keep the values of sliders over a reload
  show(picture);
}

document.getElementById("all-cuts")?.addEventListener("input", (event) => {
  for (const picture of pictures) cut(picture, event.target.value);
});
const scales = document.getElementById("all-scales");
function tellScales() {
  const { text } = copyAt(pictures[0], Number(scales.value)).dataset;
  const [part] = text.replace("after ", "").split(":");
  document.getElementById("all-scales-text").value = scales.value === scales.max ? "all scales" : part;
}
scales?.addEventListener("input", () => {
  for (const picture of pictures) {
    const slider = picture.querySelector(".scales");
    if (slider) slider.value = scales.value;
    show(picture);
  }
  tellScales();
});
model?.addEventListener("input", () => {
  pictures.forEach(show);
  if (scales) tellScales();
});

for (const button of all(".sortable button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const body = button.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // figures that are missing come last
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  });
}

const book = document.getElementById("codebook")?.dataset ?? {};
if (book.order) {
  const order = book.order.split(" ");
  const counts = book.counts ? book.counts.split(" ") : null;
  const columns = Number(book.columns);
  const rows = Math.ceil(order.length / columns);
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  let at = 0;
  const tell = (place) => {
    if (!(place >= 0 && place < order.length)) return;
    at = place;
    const used = counts ? `: ${Number(counts[at]).toLocaleString("en")} tokens` : "";
    document.getElementById("code").value = `Code ${order[at]}${used}`;
  };
  for (const atlas of all(".atlas")) {
    atlas.addEventListener("pointermove", (event) => {
      const column = Math.min(Math.floor((event.offsetX / atlas.clientWidth) * columns), columns - 1);
      const row = Math.min(Math.floor((event.offsetY / atlas.clientHeight) * rows), rows - 1);
      tell(row * columns + column);
    });
    atlas.addEventListener("keydown", (event) => {
      if (!(event.key in move)) return;
      event.preventDefault();
      tell(at + move[event.key]);
    });
  }
}

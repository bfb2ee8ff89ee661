"use strict";

// On a narrow screen the list of the notebooks stands above the page, so it begins folded.
if (matchMedia("(max-width: 60rem)").matches) {
  document.querySelector("nav.course details").open = false;
}

// ---- live figures: plotly draws what the notebook kept as data

function narrowed(layout) {
  const margin = { ...layout.margin, l: 45, r: 10 };
  const y = layout.updatemenus ? 1.2 : 1.02; // above the buttons, where there are some
  const legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y, yanchor: "bottom" };
  return { ...layout, margin, legend };
}

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".live")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const { width, ...fluid } = figure.layout ?? {}; // a fixed width would not fit every screen
    const narrow = place.clientWidth < 520;
    const layout = narrow ? narrowed(fluid) : fluid;
    const config = { ...figure.config, responsive: true, displaylogo: false };
    if (narrow) config.displayModeBar = false; // it would lie on the legend
    Plotly.newPlot(place.firstElementChild, { ...figure, layout: { ...layout, autosize: true }, config });
  }
});

// ---- equations are copied as TeX

function equationAround(node) {
  const element = node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement;
  return element && element.closest("math");
}

document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (selection.isCollapsed) return;
  const range = selection.getRangeAt(0).cloneRange();
  const first = equationAround(range.startContainer);
  const last = equationAround(range.endContainer);
  if (first) range.setStartBefore(first);
  if (last) range.setEndAfter(last);
  const copy = document.createElement("div");
  copy.append(range.cloneContents());
  const equations = copy.querySelectorAll("math");
  if (equations.length === 0) return;
  for (const math of equations) {
    const tex = math.querySelector("annotation").textContent;
    const sign = math.getAttribute("display") === "block" ? "$$" : "$";
    math.replaceWith(sign + tex + sign);
  }
  document.body.append(copy); // only what stands in the page has line breaks
  event.clipboardData.setData("text/plain", copy.innerText);
  copy.remove();
  event.preventDefault();
});

// ---- the search: search.js is loaded when the field is first used

const MOST_RESULTS = 12;
const field = document.querySelector("search input");
const results = document.querySelector("search ol");
document.querySelector("search").hidden = false;

function loadIndex() {
  if (document.querySelector("script[src='search.js']")) return;
  const script = document.createElement("script");
  script.src = "search.js";
  script.onload = showResults;
  document.head.append(script);
}

function count(text, word) {
  return text.toLowerCase().split(word).length - 1;
}

function score(entry, words) {
  let total = 0;
  for (const word of words) {
    const found = 20 * count(entry.heading, word) + 5 * count(entry.title, word) + count(entry.text, word);
    if (found === 0) return 0;
    total += Math.min(found, 40);
  }
  return total;
}

function excerpt(entry, words) {
  const text = entry.text.toLowerCase();
  const places = words.map((word) => text.indexOf(word)).filter((place) => place >= 0);
  const first = Math.min(...places, text.length);
  const begin = first < 40 ? 0 : text.indexOf(" ", first - 40) + 1; // not within a word
  const part = entry.text.slice(begin, begin + 140);
  return `${begin > 0 ? "… " : ""}${part}${begin + 140 < text.length ? " …" : ""}`;
}

function resultItem(entry, words) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = `${entry.page}.html#${encodeURIComponent(entry.place)}`;
  link.textContent = entry.heading === entry.title ? entry.title : `${entry.title}: ${entry.heading}`;
  const text = document.createElement("span");
  text.textContent = excerpt(entry, words);
  item.append(link, text);
  return item;
}

function showResults() {
  const words = field.value.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
  results.replaceChildren();
  if (words.length === 0 || !window.courseIndex) return;
  const found = window.courseIndex
    .map((entry) => ({ entry, points: score(entry, words) }))
    .filter(({ points }) => points > 0)
    .sort((one, other) => other.points - one.points);
  for (const { entry } of found.slice(0, MOST_RESULTS)) results.append(resultItem(entry, words));
  if (found.length === 0) {
    const item = document.createElement("li");
    item.textContent = `Nothing found for “${field.value}”.`;
    results.append(item);
  }
}

field.addEventListener("focus", loadIndex);
field.addEventListener("input", () => { loadIndex(); showResults(); });
field.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { field.value = ""; showResults(); }
  if (event.key === "Enter") results.querySelector("a")?.click();
});

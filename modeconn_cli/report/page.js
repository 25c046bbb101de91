"use strict";
window.addEventListener("error", (event) => { document.body.dataset.error = event.message; });

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Points that are not there break the line.
function trace(x, y) {
  let path = "", pen = "M";
  y.forEach((height, i) => {
    if (height === null) { pen = "M"; return; }
    path += `${pen}${x[i]} ${height}`;
    pen = "L";
  });
  return path;
}

function outline(x, low, high) {
  const known = x.map((px, i) => [px, low[i], high[i]]).filter((p) => p[1] !== null);
  if (!known.length) return "";
  const there = known.map(([px, , b]) => `${px} ${b}`), back = known.reverse().map(([px, a]) => `${px} ${a}`);
  return `M${there.join("L")}L${back.join("L")}Z`;
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, i) => { if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = i; });
  return best;
}

class Chart {
  constructor(figure, data, number) {
    this.figure = figure;
    this.data = data;
    this.svg = figure.querySelector(":scope > svg");
    this.stops = [...new Set(data.x.flat())].sort((a, b) => a - b);
    this.quantity = figure.dataset.quantity;
    this.scale = data.quantities[this.quantity].start;
    this.addControls(number);
    this.show();
  }

  addControls(number) {
    const controls = make("div", { class: "controls" }), words = this.quantity.split("_"), names = Object.keys(this.data.choices);
    names.forEach((name, place) => {
      const options = this.data.choices[name].map((word) => {
        const input = make("input", { type: "radio", name: `${name}${number}` });
        input.checked = words[place] === word;
        input.addEventListener("change", () => {
          words[place] = word;
          this.quantity = words.join("_");
          this.scale = this.data.quantities[this.quantity].start;
          this.show();
        });
        return make("label", {}, input, make("span", {}, word));
      });
      controls.append(make("fieldset", {}, make("legend", {}, name), ...options));
    });
    this.log = make("input", { type: "checkbox" });
    this.log.addEventListener("change", () => { this.scale = this.log.checked ? "log" : "linear"; this.show(); });
    controls.append(make("fieldset", {}, make("legend", {}, "scale"), make("label", {}, this.log, make("span", {}, "log"))));
    this.figure.prepend(controls);
  }

  get view() { return this.data.quantities[this.quantity][this.scale]; }

  // Put the chosen quantity and scale in the place of those that are drawn.
  show() {
    const quantity = this.data.quantities[this.quantity], view = this.view;
    this.log.checked = this.scale === "log";
    this.log.disabled = quantity.log === null;
    const [title, note] = this.figure.querySelectorAll("p > span");
    title.textContent = quantity.title;
    note.textContent = this.scale === "log" ? (view.floor ? "log scale, zeros at its foot" : "log scale") : "";
    const label = `${quantity.title}: ${this.data.names.join(", ")}. Arrow keys move along the lines.`;
    this.svg.setAttribute("aria-label", label);
    const ticks = this.svg.querySelector(".ticks"), pattern = ticks.firstElementChild;
    ticks.replaceChildren(...view.ticks.map(([height, text]) => {
      const tick = pattern.cloneNode(true), [line, words] = tick.children;
      line.setAttribute("y1", height);
      line.setAttribute("y2", height);
      words.setAttribute("y", height + 4);
      words.textContent = text;
      return tick;
    }));
    const bands = this.svg.querySelectorAll(".band"), lines = this.svg.querySelectorAll(".line");
    view.lines.forEach((points, i) => {
      bands[i].setAttribute("d", outline(this.data.x[i], points.low, points.high));
      lines[i].setAttribute("d", trace(this.data.x[i], points.y));
    });
    this.pointAt(this.stop ?? null);
  }

  // Name the measured point of every line that is nearest to a stop; null: those that are named at rest.
  pointAt(stop) {
    this.stop = stop;
    const { at, names, quantities, x } = this.data, lines = quantities[this.quantity].lines;
    const rows = this.figure.querySelectorAll("tbody tr"), dots = this.svg.querySelectorAll(".dot"), said = [];
    lines.forEach((line, i) => {
      const point = stop === null ? line.rest : nearest(x[i], this.stops[stop]), height = this.view.lines[i].y[point];
      const cells = [at[i][point], line.value[point], ...(line.se.length ? [`± ${line.se[point]}`] : [])];
      rows[i].querySelectorAll("td").forEach((cell, k) => { cell.textContent = cells[k]; });
      dots[i].setAttribute("cx", x[i][point]);
      dots[i].setAttribute("cy", height ?? 0);
      dots[i].style.visibility = height === null ? "hidden" : "";
      said.push(`${names[i]} at ${cells.join(", ")}`);
    });
    this.figure.querySelector("caption").textContent = stop === null ? this.data.caption : "Nearest measured points";
    this.figure.classList.toggle("pointed", stop !== null);
    const here = this.svg.querySelector(".here");
    for (const end of ["x1", "x2"]) here.setAttribute(end, this.stops[stop ?? 0]);
    this.svg.setAttribute("aria-valuenow", stop ?? 0);
    this.svg.setAttribute("aria-valuetext", said.join("; "));
  }
}

// Charts side by side are pointed at together: they share their x.
function listen(charts) {
  const pointAll = (stop) => charts.forEach((chart) => chart.pointAt(stop));
  for (const { svg, stops } of charts) {
    const last = stops.length - 1;
    for (const [key, value] of Object.entries({ tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": last })) {
      svg.setAttribute(key, value);
    }
    let stop = 0;
    const go = (to) => { stop = Math.min(Math.max(to, 0), last); pointAll(stop); };
    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      go(nearest(stops, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width));
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") pointAll(null); });
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) go(stop); });
    svg.addEventListener("blur", () => pointAll(null));
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -last, End: last };
      if (event.key === "Escape") pointAll(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      go(stop + steps[event.key]);
    });
  }
}

function addCopyButton(command) {
  const code = command.querySelector("code"), button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {  // without the permission, the old way
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  command.append(button);
}

const everything = JSON.parse(document.getElementById("charts").textContent);
let drawn = 0;
for (const group of document.querySelectorAll(".charts")) {
  listen([...group.querySelectorAll(".chart")].map((figure) => new Chart(figure, everything[figure.dataset.chart], drawn++)));
}
document.querySelectorAll(".command").forEach(addCopyButton);
document.body.dataset.charts = drawn;

// Draws the figures that the page holds as JSON, in the page's colours.
"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const DASHES = { dash: "8 6", dot: "2 4", dashdot: "8 4 2 4", longdash: "13 6", longdashdot: "13 4 2 4" };
  const hiddenIn = figures.map(function () { return new Set(); }); // names of lines, by figure
  let axis = "updates";

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function paintOf(given) {
    return given.fixed || colour("c" + ((given.colour || 0) % 6));
  }

  function trace(given, hidden) {
    const drawn = JSON.parse(JSON.stringify(given));
    const paint = paintOf(given);
    if (given.x && given.x.updates) drawn.x = given.x[axis];
    drawn.visible = !hidden.has(given.name);
    if (given.type === "scatter") {
      drawn.line = Object.assign({}, given.line, { color: paint });
      drawn.marker = { color: paint, size: 7 };
    } else if (given.type === "bar") {
      drawn.marker = { color: paint };
    }
    delete drawn.colour;
    delete drawn.fixed;
    return drawn;
  }

  // Marks of warnings; those that would cover each other are one.
  function marks(figure, number, layout) {
    const width = document.getElementById("figure-" + number).clientWidth - 60;
    const ends = figure.traces.map(function (t) { return Math.max.apply(null, t.x[axis] || [0]); });
    const near = Math.max.apply(null, ends) * 36 / Math.max(width, 100);
    const groups = [];
    (figure.marks[axis] || []).slice().sort(function (a, b) { return a[0] - b[0]; }).forEach(function (mark) {
      const last = groups[groups.length - 1];
      if (last && mark[0] - last.place <= near) last.numbers.push(mark[1]);
      else groups.push({ place: mark[0], numbers: [mark[1]] });
    });
    layout.shapes = groups.map(function (group) {
      return { type: "line", xref: "x", yref: "paper", x0: group.place, x1: group.place, y0: 0, y1: 1,
               line: { color: colour("warn"), width: 1, dash: "dot" } };
    });
    layout.annotations = groups.map(function (group) {
      const numbers = group.numbers.sort(function (a, b) { return a - b; });
      const text = numbers.length < 3 ? numbers.join(",") : numbers[0] + ",…";
      return { x: group.place, y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false,
               text: "⚠" + text, font: { color: colour("warn"), size: 11 } };
    });
  }

  function layout(figure, number) {
    const lines = { gridcolor: colour("grid"), zerolinecolor: colour("grid"), automargin: true,
                    exponentformat: "e" };
    const title = figure.x === "updates" && axis === "hours" ? "hours of training" : figure.x;
    const own = JSON.parse(JSON.stringify(figure.layout));
    const made = Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 48, r: 12, t: 22, b: 44 }, hovermode: "closest",
      dragmode: coarse ? false : "zoom",
    }, own, { showlegend: false });
    made.xaxis = Object.assign({}, lines, { title: { text: title, standoff: 6 } }, own.xaxis);
    made.yaxis = Object.assign({}, lines, own.yaxis);
    marks(figure, number, made);
    return made;
  }

  function drawn(kind, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    Object.keys(attributes).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    return made;
  }

  // A piece of the line, or of the bar.
  function piece(given) {
    const paint = paintOf(given);
    const made = drawn("svg", { width: 30, height: 10, "aria-hidden": "true" });
    if (given.type === "bar") {
      made.append(drawn("rect", { x: 10, width: 10, height: 10, fill: paint }));
      return made;
    }
    made.append(drawn("line", { x1: 0, x2: 30, y1: 5, y2: 5, stroke: paint, "stroke-width": 2,
                                "stroke-dasharray": DASHES[given.line.dash] || "" }));
    if (given.mode.includes("markers")) {
      made.append(drawn("circle", { cx: 15, cy: 5, r: 3.5, fill: paint }));
    }
    return made;
  }

  // Plotly's own would cover the axis where it has many lines, or leave the plot no room.
  function legend(figure, number) {
    const named = figure.traces.filter(function (t) { return t.showlegend !== false; });
    if (named.length < 2 || figure.layout.showlegend === false) return;
    const box = document.getElementById("figure-" + number).parentNode.querySelector(".legend");
    box.replaceChildren.apply(box, named.map(function (given) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "show or hide";
      button.setAttribute("aria-pressed", String(!hiddenIn[number].has(given.name)));
      button.append(piece(given), given.name);
      button.addEventListener("click", function () {
        if (!hiddenIn[number].delete(given.name)) hiddenIn[number].add(given.name);
        drawOne(figure, number);
        box.children[named.indexOf(given)].focus();
      });
      return button;
    }));
  }

  function drawOne(figure, number) {
    const traces = figure.traces.map(function (given) { return trace(given, hiddenIn[number]); });
    Plotly.react(document.getElementById("figure-" + number), traces, layout(figure, number), {
      responsive: true, displaylogo: false, displayModeBar: false,
    });
    legend(figure, number);
  }

  function draw() {
    figures.forEach(drawOne);
  }

  document.querySelectorAll("input[name=axis]").forEach(function (choice) {
    choice.addEventListener("change", function () { axis = choice.value; draw(); });
  });
  dark.addEventListener("change", draw);
  draw();
  document.documentElement.dataset.drawn = figures.length;
})();

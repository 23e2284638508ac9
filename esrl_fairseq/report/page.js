// Draws the figures that the page holds as JSON, in the page's colours.
"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  let axis = "updates";

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function trace(given) {
    const drawn = JSON.parse(JSON.stringify(given));
    const paint = given.fixed || colour("c" + ((given.colour || 0) % 6));
    if (given.x && given.x.updates) drawn.x = given.x[axis];
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

  function marks(figure, layout) {
    const places = figure.marks[axis] || [];
    layout.shapes = places.map(function (mark) {
      return { type: "line", xref: "x", yref: "paper", x0: mark[0], x1: mark[0], y0: 0, y1: 1,
               line: { color: colour("warn"), width: 1, dash: "dot" } };
    });
    layout.annotations = places.map(function (mark) {
      return { x: mark[0], y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false,
               text: "⚠" + mark[1], font: { color: colour("warn"), size: 11 } };
    });
  }

  function layout(figure) {
    const lines = { gridcolor: colour("grid"), zerolinecolor: colour("grid"), automargin: true,
                    exponentformat: "e" };
    const title = figure.x === "updates" && axis === "hours" ? "hours of training" : figure.x;
    const named = figure.traces.filter(function (t) { return t.showlegend !== false; });
    const own = JSON.parse(JSON.stringify(figure.layout));
    const made = Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 48, r: 12, t: 22, b: 44 }, hovermode: "closest",
      dragmode: coarse ? false : "zoom", showlegend: named.length > 1,
      legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, traceorder: "normal" },
    }, own);
    made.xaxis = Object.assign({}, lines, { title: { text: title, standoff: 6 } }, own.xaxis);
    made.yaxis = Object.assign({}, lines, own.yaxis);
    marks(figure, made);
    return made;
  }

  function draw() {
    figures.forEach(function (figure, number) {
      const place = document.getElementById("figure-" + number);
      Plotly.react(place, figure.traces.map(trace), layout(figure), {
        responsive: true, displaylogo: false, displayModeBar: false,
      });
    });
  }

  document.querySelectorAll("input[name=axis]").forEach(function (choice) {
    choice.addEventListener("change", function () { axis = choice.value; draw(); });
  });
  dark.addEventListener("change", draw);
  draw();
  document.documentElement.dataset.drawn = figures.length;
})();

"use strict";
(() => {
  const charts = Array.from(document.querySelectorAll("figure.chart"));
  if (typeof Plotly === "undefined") {
    // Deferred scripts run after this one; by "load" all that can be there is there.
    window.addEventListener("load", () =>
      typeof Plotly === "undefined"
        ? document.querySelectorAll(".no-plotly").forEach((note) => (note.hidden = false))
        : start());
  } else {
    start();
  }

  function start() {
    // A page may hold a hundred charts: each is drawn when it comes near the window.
    const watch = new IntersectionObserver(
      (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
      { rootMargin: "600px" });
    charts.forEach((figure) => watch.observe(figure));
    window.addEventListener("beforeprint", openAll);

    function draw(figure) {
      watch.unobserve(figure);
      if (figure.classList.contains("drawn")) return;
      figure.classList.add("drawn");
      const plot = figure.querySelector(".plot");
      const spec = JSON.parse(figure.querySelector("script").textContent);
      const range = ranges[figure.dataset.link];
      if (range) timeAxes(spec.layout).forEach((axis) => (spec.layout[axis].range = range.slice()));
      Plotly.newPlot(plot, spec.data, spec.layout, {
        responsive: true,
        displaylogo: false,
        // A list of what may be there, not of what may not: plotly's own set has a button that
        // sends the chart to a server.
        modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
        plotlyServerURL: "",
        toImageButtonOptions: { filename: figure.id, scale: 2 },
      }).then(() => {
        if (figure.dataset.link) plot.on("plotly_relayout", (change) => follow(figure, change));
        buttons(figure, plot);
        figure.dataset.ready = "yes";
      });
    }
  }

  // Charts of one run share their time: link → range in seconds.
  const ranges = {};

  function timeAxes(layout) {
    return Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key));
  }

  function follow(source, change) {
    const key = Object.keys(change).find((name) => /^xaxis\d*\.range/.test(name));
    if (!key) return;
    const axis = key.split(".")[0];
    const range = source.querySelector(".plot").layout[axis].range.slice();
    const link = source.dataset.link;
    // An echo of what this function has set itself ends here.
    const same = (a, b) => a && Math.abs(a[0] - b[0]) < 1e-6 && Math.abs(a[1] - b[1]) < 1e-6;
    if (same(ranges[link], range)) return;
    ranges[link] = range;
    charts.filter((figure) => figure !== source && figure.dataset.link === link && figure.dataset.ready)
      .forEach((figure) => {
        const plot = figure.querySelector(".plot");
        const update = {};
        timeAxes(plot.layout).forEach((name) => (update[name + ".range"] = range.slice()));
        Plotly.relayout(plot, update);
      });
  }

  function buttons(figure, plot) {
    const bar = document.querySelector(`.buttons[data-for="${CSS.escape(figure.id)}"]`);
    if (!bar) return;
    bar.hidden = false;
    bar.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      const faint = new Set(plot.data.filter((t) => t.meta && t.meta.faint).map((t) => t.legendgroup));
      const networks = new Set(plot.data.filter((t) => t.meta).map((t) => t.legendgroup));
      const shown = {
        all: () => true,
        present: (group) => !faint.has(group),
        none: () => false,
      }[button.dataset.show];
      const visible = plot.data.map((trace) =>
        !networks.has(trace.legendgroup) || shown(trace.legendgroup) ? true : "legendonly");
      Plotly.restyle(plot, { visible });
    }));
  }

  function openAll() {
    document.querySelectorAll("details").forEach((details) => (details.open = true));
  }

  // The entry of the contents that is being read.
  const links = new Map(Array.from(document.querySelectorAll("nav a"))
    .map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const spy = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    links.forEach((a) => a.classList.remove("here"));
    links.get(entry.target.id).classList.add("here");
  }), { rootMargin: "-10% 0px -85% 0px" });
  links.forEach((_, id) => {
    const section = document.getElementById(id);
    if (section) spy.observe(section);
  });
})();

(() => {
  const people = JSON.parse(document.getElementById("people").textContent);
  const space = people.geometry;
  let marked = new Set();

  const escape = (text) => String(text).replace(/[&<>"]/g, (c) =>
    ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const short = (value) => (Math.abs(value) >= 1000 ? Math.round(value) : +value.toPrecision(3));

  // --- distributions ---------------------------------------------------------------------------

  // [[who, value], …] for each lane of a row.
  function lanesOf(row, lanes) {
    if (row.lanes) {
      return row.lanes.map(([who, values]) =>
        who.map((i, k) => [i, values[k]]).filter(([, v]) => v !== null));
    }
    const split = lanes.names.map(() => []);
    row.values.forEach((v, i) => { if (v !== null) split[people.of[i]].push([i, v]); });
    return split;
  }

  // The same picture as without JavaScript, but as wide as there is room, each dot a link.
  function picture(measure, lanes, wide) {
    const n = lanes.names.length;
    const label = wide < 560 ? 108 : space.label;
    const note = measure.rows.some((row) => row.note) ? space.note : 12;
    const radius = people.participants.length > 300 ? 1.8 : 2.8;
    const height = space.axis + measure.rows.length * (n * space.lane + space.between);
    const x = (v) => label + (v - measure.low) / (measure.high - measure.low) * (wide - label - note);
    const parts = measure.ticks
      .filter((_, k) => wide > 560 || k % 2 === 0)
      .map(([tick, text]) => `<line class="grid" x1="${x(tick)}" x2="${x(tick)}" ` +
        `y1="${space.axis - 6}" y2="${height}"/><text class="tick" x="${x(tick)}" y="12">${text}</text>`);
    let top = space.axis;
    measure.rows.forEach((row) => {
      const middle = top + n * space.lane / 2 + 4;
      const weak = row.stands || !row.note ? "" : " chance";
      const fits = Math.floor(label / 6.7);
      const name = row.name.length > fits ? row.name.slice(0, fits - 1) + "…" : row.name;
      parts.push(`<text class="name${weak}" x="${label - 10}" y="${middle}">` +
        `<title>${escape(row.name)}</title>${escape(name)}</text>` +
        `<text class="note${weak}" x="${wide - note + 10}" y="${middle}">${escape(row.note)}</text>`);
      lanesOf(row, lanes).forEach((dots, k) => {
        const centre = top + (k + 0.5) * space.lane;
        const [low, high] = [centre - space.lane / 2 + 1, centre + space.lane / 2 - 1];
        const q = row.quartiles[k];
        if (q) {
          parts.push(`<rect class="middle" x="${x(q[0])}" width="${x(q[2]) - x(q[0])}" ` +
            `y="${low}" height="${high - low}"/>`);
        }
        dots.forEach(([i, v]) => {
          const y = centre + (i * 0.618034 % 1 - 0.5) * (space.lane - 7);
          const text = `${people.participants[i]}${n > 1 ? ", " + lanes.names[k] : ""}: ${short(v)}`;
          parts.push(`<a href="${escape(people.links[i])}" data-p="${i}"><circle ` +
            `cx="${x(v).toFixed(1)}" cy="${y.toFixed(1)}" r="${radius}" fill="${lanes.colours[k]}">` +
            `<title>${escape(text)}</title></circle></a>`);
        });
        if (q) parts.push(`<line class="median" x1="${x(q[1])}" x2="${x(q[1])}" y1="${low}" y2="${high}"/>`);
      });
      top += n * space.lane + space.between;
    });
    if (typeof measure.limit === "number") {
      const at = x(measure.limit);
      parts.push(`<line class="limit" x1="${at}" x2="${at}" y1="${space.axis - 6}" y2="${height}"/>`);
    }
    return `<svg class="strip" width="${wide}" height="${height}" viewBox="0 0 ${wide} ${height}" ` +
      `role="group" aria-label="${escape(measure.label)}">${parts.join("")}</svg>`;
  }

  const figures = Array.from(document.querySelectorAll("figure.strips"));
  const redraw = new Map();
  figures.forEach((figure) => {
    const select = figure.querySelector("select");
    const place = figure.querySelector(".strip-picture");
    let data, width;
    function draw() {
      data = data || JSON.parse(figure.querySelector("script").textContent);
      width = Math.max(300, place.clientWidth);
      const measure = data.measures[select ? +select.value : data.first];
      figure.querySelector(".strip-title").textContent = measure.label;
      place.innerHTML = picture(measure, data.lanes || people.lanes, width);
      figure.dataset.ready = "yes";
      mark(figure);
    }
    redraw.set(figure, () => { if (place.clientWidth && place.clientWidth !== width) draw(); });
    if (select) {
      figure.querySelector(".controls").hidden = false;
      select.addEventListener("change", draw);
    }
  });
  // Thousands of dots: each picture is drawn when it comes near the window.
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) redraw.get(entry.target)();
  }), { rootMargin: "600px" });
  figures.forEach((figure) => near.observe(figure));
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() =>
      figures.filter((f) => f.dataset.ready).forEach((f) => redraw.get(f)()), 150);
  });

  // --- finding a participant -------------------------------------------------------------------

  function mark(where) {
    where.querySelectorAll("svg.strip").forEach((svg) => {
      svg.classList.toggle("finding", marked.size > 0);
      svg.querySelectorAll("a.marked").forEach((a) => a.classList.remove("marked"));
      marked.forEach((i) => svg.querySelectorAll(`a[data-p="${i}"]`).forEach((a) => {
        a.classList.add("marked");
        svg.append(a);
      }));
    });
    where.querySelectorAll("tr[data-who]").forEach((row) =>
      row.classList.toggle("marked", marked.has(people.participants.indexOf(row.dataset.who))));
  }

  const finder = document.querySelector(".finder");
  finder.hidden = false;
  finder.addEventListener("submit", (event) => event.preventDefault());
  finder.querySelector("input").addEventListener("input", (event) => {
    const text = event.target.value.trim().toLowerCase();
    const names = people.participants.map((name) => name.toLowerCase());
    let found = [];
    if (text) {
      const whole = names.findIndex((name) => name === text || name === "sub-" + text);
      found = whole >= 0 ? [whole] : names.flatMap((name, i) => (name.includes(text) ? [i] : []));
    }
    marked = new Set(found);
    const one = found.length === 1 ? people.participants[found[0]] : "";
    const output = finder.querySelector("output");
    output.textContent = !text ? "" : one ? "" : `${found.length} of ${names.length}`;
    if (one) {
      const link = document.createElement("a");
      link.href = people.links[found[0]];
      link.textContent = `report of ${one}`;
      output.append(link);
    }
    mark(document);
  });

  // --- tables ----------------------------------------------------------------------------------

  // What a cell sorts by: columns of numbers by the number, others by their words; none goes last.
  function key(cell) {
    const text = (cell.dataset.v ?? cell.textContent).trim();
    if (!cell.classList.contains("n")) return text || null;
    const value = parseFloat(text.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(value) ? null : value;
  }

  const compare = (a, b) => (typeof a === "number" ? a - b
    : a.localeCompare(b, "en", { numeric: true }));

  document.querySelectorAll("table.sortable").forEach((table) => {
    const headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach((heading, column) => {
      if (heading.dataset.sort === "no") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = Array.from(body.rows).map((row) => [key(row.cells[column]), row]);
        rows.sort(([a], [b]) => (a === null || b === null
          ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  });

  document.querySelectorAll(".filter").forEach((bar) => {
    const rows = Array.from(document.getElementById(bar.dataset.table).tBodies[0].rows);
    const text = bar.querySelector("input[type=search]");
    const only = bar.querySelector("input[type=checkbox]");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    bar.hidden = false;
    function apply() {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, k) => {
        row.hidden = !words.every((word) => texts[k].includes(word)) ||
          Boolean(only && only.checked && row.classList.contains("chance"));
        shown += !row.hidden;
      });
      bar.querySelector("output").textContent = `${shown} of ${rows.length}`;
    }
    text.addEventListener("input", apply);
    if (only) only.addEventListener("change", apply);
    apply();
  });

  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((details) => (details.open = true));
    figures.filter((f) => !f.dataset.ready).forEach((f) => redraw.get(f)());
  });
})();

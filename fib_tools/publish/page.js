"use strict";
// Everything below is written as text (textContent), never as markup: names and logs come from strangers.
(() => {
  const dialog = document.getElementById("evidence");
  const inline = document.getElementById("data");
  // A page carries its data, or names the file that has it; that is fetched when the first figure is looked at.
  let known = inline && Promise.resolve(JSON.parse(inline.textContent));
  const load = () => (known ??= fetch(dialog.dataset.source).then(read));
  const read = async (answer) => {
    if (!answer.ok) throw new Error(`The server said ${answer.status}`);
    const data = await answer.json();
    if (data.stamp !== dialog.dataset.stamp) throw new Error("More was measured since this page was loaded: load it again");
    return data;
  };
  const SVG = "http://www.w3.org/2000/svg";

  const make = (name, className, ...children) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    for (const child of children) if (child !== null && child !== undefined) element.append(child);
    return element;
  };

  // Sorting: a value that is a number sorts as one; what is not there comes last either way.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
    return sign * order;
  };
  const sortBy = (head) => {
    const table = head.closest("table");
    const place = [...head.parentNode.children].indexOf(head);
    const numeric = head.classList.contains("n");
    const was = head.getAttribute("aria-sort");
    const next = was === "none" ? (numeric ? "descending" : "ascending") : was === "ascending" ? "descending" : "ascending";
    for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", next);
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [row.cells[place].dataset.v, row]);
    rows.sort((a, b) => compare(a[0], b[0], next === "ascending" ? 1 : -1));
    body.append(...rows.map((pair) => pair[1]));
  };

  const filter = (box) => {
    const wanted = box.value.trim().toLowerCase();
    const device = box.closest(".device") || document;
    for (const row of box.closest(".card").querySelectorAll("tbody tr")) {
      row.classList.toggle("hidden", !row.textContent.toLowerCase().includes(wanted));
    }
    for (const card of device.querySelectorAll("details.definition")) {
      card.classList.toggle("hidden", !card.dataset.name.includes(wanted));
    }
  };

  const openTarget = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  };

  const time = (ms) => {
    if (ms === null || ms === undefined) return "not there";
    const digits = (value) => (value >= 1000 ? value.toFixed(0) : value.toPrecision(4));
    return ms < 1 ? `${digits(ms * 1000)} \u00b5s` : ms < 1000 ? `${digits(ms)} ms` : `${digits(ms / 1000)} s`;
  };
  const percent = (part, whole) => `${((100 * part) / whole).toFixed(2)}%`;

  const facts = (pairs) => {
    const list = make("dl", "facts");
    for (const [name, value] of pairs) {
      if (value === undefined || value === null || value === "") continue;
      list.append(make("div", "", make("dt", "", name), make("dd", "", String(value))));
    }
    return list;
  };
  const section = (title, ...content) => [make("h3", "", title), ...content];

  const shape = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  // Calls from left to right, time upwards; the band is the interval of the figure.
  const strip = (series) => {
    const low = Math.min(...series.samples, series.low), high = Math.max(...series.samples, series.high);
    const room = high - low || high * 0.02 || 1;
    const bottom = low - room * 0.12, span = room * 1.24;
    const width = 900, height = 92;
    const y = (value) => height * (1 - (value - bottom) / span);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", `${series.samples.length} samples from ${time(low)} to ${time(high)}`);
    svg.append(shape("rect", { class: "band", x: 0, width, y: y(series.high), height: Math.max(1, y(series.low) - y(series.high)) }));
    svg.append(shape("line", { class: "mean", x1: 0, x2: width, y1: y(series.milliseconds), y2: y(series.milliseconds) }));
    const box = make("div", "strip", svg);
    const count = series.samples.length;
    const draw = () => {
      const wide = box.clientWidth / width || 1;
      series.samples.forEach((value, place) => {
        const cx = (width * (place + 0.5)) / count;
        svg.append(shape("ellipse", { class: "sample", cx, cy: y(value), rx: 2.4 / wide, ry: 2.4 }));
      });
    };
    requestAnimationFrame(draw);
    const ends = make("div", "ends", make("span", "", `first call`), make("span", "", `${time(low)} to ${time(high)}`), make("span", "", `call ${count}${series.taken > count ? ` of ${series.taken}` : ""}`));
    return make("div", "", box, ends);
  };

  const drawSeries = (evidence) =>
    (evidence.series || []).flatMap((series) => [
      ...section(`${series.timer}, ${series.l2} L2: ${time(series.milliseconds)}`),
      make("div", "dim", `95% interval ${time(series.low)} to ${time(series.high)} (\u00b1${percent((series.high - series.low) / 2, series.milliseconds || 1)}), ${series.taken} samples`),
      ...(series.samples.length ? [strip(series)] : []),
    ]);

  const drawErrors = (errors) => {
    const entries = Object.entries(errors || {});
    if (!entries.length) return [];
    return section("Errors against the reference", facts(entries.map(([name, error]) => [
      name,
      `max ${Number(error.max_absolute).toPrecision(3)} absolute, ${Number(error.max_relative).toPrecision(3)} relative; ${error.misses} of ${error.values} outside rtol ${error.rtol}, atol ${error.atol}`,
    ])));
  };

  const chips = (items) => {
    const list = make("ul", "chips");
    for (const [text, off] of items) list.append(make("li", off ? "chip off" : "chip", text));
    return list;
  };

  const drawEvidence = (evidence) => {
    const { gpu, clocks = {}, roofline, build = {}, subject } = evidence;
    const clock = (before, after) => (before || after ? `${before || 0} MHz before, ${after || 0} after` : "");
    return [
      ...drawSeries(evidence),
      ...(roofline ? section("Limit", facts([
        ["bytes that must move", roofline.bytes.toLocaleString("en")],
        ["operations", roofline.flops ? `${roofline.flops.toLocaleString("en")} ${roofline.unit || ""}` : ""],
        ["least time", `${time(roofline.limit_ms)} (${roofline.bound || "memory"})`],
        ["reached", `${Number(roofline.percent).toPrecision(3)}%`],
      ])) : []),
      ...drawErrors(evidence.errors),
      ...section("How it was measured", facts([
        ["seed", evidence.seed],
        ["calls made and compared", evidence.calls],
        ["input values", (evidence.distributions || []).join(", ")],
        ["SM clock", clock(clocks.sm_before, clocks.sm_after)],
        ["memory clock", clock(clocks.memory_before, clocks.memory_after)],
        ["power", clocks.watts_after ? `${clocks.watts_after} W` : ""],
        ["held down by", clocks.throttle],
        ["device", gpu.name], ["UUID", gpu.uuid], ["driver", gpu.driver],
        ["built in", build.seconds ? `${build.seconds.toFixed(2)} s` : ""],
        ["first call", build.first_call_seconds ? `${build.first_call_seconds.toFixed(2)} s` : ""],
        ["setup", build.setup_seconds ? `${build.setup_seconds.toFixed(3)} s` : ""],
        ["done", evidence.timestamp],
        ["Solution's hash", subject.solution_hash],
        ["workload's hash", subject.workload_hash],
        ["Definition's hash", subject.definition_hash],
      ])),
      ...(Object.keys(evidence.protections || {}).length ? section("Protections", chips(Object.entries(evidence.protections).map(([name, on]) => [on ? name : `${name}: off`, !on]))) : []),
      ...((evidence.kernels || []).length ? section("Kernels of one call", chips(evidence.kernels.map((name) => [name, false]))) : []),
      ...(Object.keys(evidence.libs || {}).length ? section("Versions", chips(Object.entries(evidence.libs).map(([name, version]) => [`${name} ${version}`, false]))) : []),
    ];
  };

  const open = (...content) => {
    dialog.replaceChildren(make("div", "inner", ...content));
    dialog.showModal();
    dialog.querySelector(".close").focus();
    dialog.scrollTop = 0;
  };
  const closer = () => {
    const close = make("button", "close", "Close");
    close.type = "button";
    close.addEventListener("click", () => dialog.close());
    return close;
  };
  const fail = (error) => {
    known = null;
    const title = make("h2", "", "The evidence cannot be read");
    title.id = "evidence-title";
    open(make("div", "top", title, closer()), make("p", "dim", `${error.message}.`));
  };
  const show = (data, row) => {
    const evidence = row.evidence && data.evidence[row.evidence];
    const title = make("h2", "", `${row.author || "unknown"}/${row.solution}`);
    title.id = "evidence-title";
    const content = [
      make("div", "top", make("div", "", title, make("div", "dim", `${row.definition} \u00b7 ${row.label} \u00b7 ${row.device}`)), closer()),
      facts([
        ["status", row.status],
        ["rejected by", row.rule],
        ["time", row.milliseconds === undefined ? "" : time(row.milliseconds)],
        ["over the baseline", row.speedup ? `${row.speedup.toFixed(3)}\u00d7` : ""],
        ["over the reference", row.reference_speedup ? `${row.reference_speedup.toFixed(3)}\u00d7` : ""],
        ["of the measured limit", row.percent ? `${row.percent.toFixed(1)}%` : ""],
        ["workload", row.workload],
      ]),
    ];
    if (row.detail) content.push(...section("What went wrong", make("pre", "plain", row.detail)));
    if (evidence) content.push(...drawEvidence(evidence));
    else content.push(make("p", "dim", row.evidence ? `The evidence lies at evidence/${row.evidence.slice(0, 2)}/${row.evidence}.json` : "There is no evidence beside this trace."));
    if (row.evidence) content.push(...section("Evidence", facts([["address", row.evidence]])));
    open(...content);
  };
  if (dialog) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  document.addEventListener("click", (event) => {
    const head = event.target.closest("thead th");
    if (head) return sortBy(head);
    const mark = event.target.closest("[data-m]");
    if (mark) load().then((data) => show(data, data.rows[Number(mark.dataset.m)])).catch(fail);
  });
  document.addEventListener("input", (event) => { if (event.target.matches(".filter")) filter(event.target); });
  // What a mark stands for, when it is pointed at; thousands of titles would only make the page heavy.
  document.addEventListener("mouseover", (event) => {
    const mark = event.target.closest(".mk[data-m]");
    if (!mark || mark.dataset.said) return;
    mark.dataset.said = "1";
    load().then((data) => name(mark, data.rows[Number(mark.dataset.m)])).catch(() => {});
  });
  const name = (mark, row) => {
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${row.author}/${row.solution}, ${row.definition}, ${row.label}: ${time(row.milliseconds)}${row.speedup ? `, ${row.speedup.toFixed(2)}\u00d7` : ""}${row.percent ? `, ${row.percent.toFixed(0)}% of the limit` : ""}`;
    mark.append(title);
  };
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();

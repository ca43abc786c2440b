"use strict";
// Texts are written as text, and nothing that a page says becomes markup.
(() => {
  // The list of Definitions: a search and three choices, kept in the address, so that a view can be shared.
  const filters = document.querySelector(".filters");
  const table = document.querySelector('table[aria-label="Definitions"]');
  if (filters && table) {
    const fields = [...filters.querySelectorAll("input, select")];
    const told = document.querySelector(".found");
    const rows = [...table.tBodies[0].rows].map((row) => {
      const cells = [...row.cells].map((cell) => cell.dataset.v);
      const words = row.querySelector("a").dataset.words || "";
      return {
        row, op_type: cells[1], models: cells[2].split(" "), workloads: Number(cells[3]), measured: Number(cells[5]), status: cells[6],
        text: `${cells[0]} ${row.cells[0].textContent} ${cells[1]} ${cells[2]} ${words}`.toLowerCase(),
      };
    });
    const states = {
      measured: (entry) => entry.measured > 0,
      unmeasured: (entry) => entry.measured === 0,
      workloads: (entry) => entry.workloads > 0,
      bare: (entry) => entry.workloads === 0,
      verified: (entry) => entry.status === "verified",
      unverified: (entry) => entry.status !== "verified",
    };
    const apply = () => {
      const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value]));
      const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const entry of rows) {
        const fits = words.every((word) => entry.text.includes(word))
          && (!wanted.op_type || entry.op_type === wanted.op_type)
          && (!wanted.model || entry.models.includes(wanted.model))
          && (!wanted.state || states[wanted.state](entry));
        entry.row.classList.toggle("hidden", !fits);
        count += fits;
      }
      const all = Number(told.dataset.all).toLocaleString("en");
      told.textContent = count === rows.length ? `${all} Definitions` : `${count.toLocaleString("en")} of ${all} Definitions`;
    };
    const keep = () => {
      const said = new URLSearchParams(fields.filter((field) => field.value).map((field) => [field.name, field.value])).toString();
      history.replaceState(null, "", said ? `?${said}` : location.pathname);
    };
    const asked = new URLSearchParams(location.search);
    for (const field of fields) {
      if (asked.has(field.name)) field.value = asked.get(field.name);
      if (field.selectedIndex === -1) field.value = "";
    }
    filters.addEventListener("input", () => { apply(); keep(); });
    apply();
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select, textarea")) return;
      event.preventDefault();
      fields[0].focus();
    });
  }

  // A model's tree: the kernels of one way to cut it.
  const choice = document.querySelector('.choose select[name="tp"]');
  if (choice) choice.addEventListener("input", () => {
    for (const kernel of document.querySelectorAll(".tree [data-tp]")) {
      kernel.classList.toggle("hidden", choice.value !== "" && !kernel.dataset.tp.split(" ").includes(choice.value));
    }
    for (const branch of [...document.querySelectorAll(".tree li:has(> details)")]) {
      branch.classList.toggle("hidden", !branch.querySelector(".kernels > li:not(.hidden)"));
    }
  });

  // Copying; a page that is no secure context has no clipboard, and shows no button.
  for (const button of document.querySelectorAll(".copy")) {
    if (!navigator.clipboard) { button.hidden = true; continue; }
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentNode.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // Perfetto's page is pinged until it answers; then it is given the trace, by its own protocol.
  const said = document.getElementById("perfetto");
  const say = (text) => {
    said.textContent = text;
    said.hidden = !text;
  };
  const PATIENCE = 20000;
  const openTrace = async (button) => {
    const { trace, ui, title } = button.dataset;
    say("");
    const target = window.open(ui);
    if (!target) return say("The browser did not let this page open a window: allow it, or download the trace.");
    let pinging = 0;
    const answered = new Promise((done, fail) => {
      const listen = (event) => {
        if (event.source === target && event.origin === ui && event.data === "PONG") done(window.removeEventListener("message", listen));
      };
      window.addEventListener("message", listen);
      pinging = setInterval(() => target.postMessage("PING", ui), 100);
      setTimeout(() => fail(new Error(`${ui} does not answer. It is a page of the web: without a network, download the trace and open it in a copy of Perfetto's UI of your own`)), PATIENCE);
    });
    const read = fetch(trace).then((answer) => (answer.ok ? answer.arrayBuffer() : Promise.reject(new Error(`The trace cannot be read: status ${answer.status}`))));
    try {
      const [buffer] = await Promise.all([read, answered]);
      target.postMessage({ perfetto: { buffer, title, fileName: title } }, ui);
    } catch (error) {
      say(`${error.message}.`);
    } finally {
      clearInterval(pinging);
    }
  };
  for (const button of document.querySelectorAll("[data-trace]")) {
    button.addEventListener("click", () => {
      if (navigator.onLine) return openTrace(button);
      say("There is no network, and Perfetto's page is on the web: download the trace and open it in a copy of its UI of your own.");
    });
  }
})();

"use strict";
// The allocation explorer: shows the state of one arm after one event. Its data is in #explorer-data.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const panel = document.getElementById("explorer-panel");
  const form = panel.querySelector("form");
  const grid = document.getElementById("explorer-grid");
  const status = document.getElementById("explorer-status");
  const details = document.getElementById("explorer-details");
  const buttons = new Map([...grid.querySelectorAll(".site")].map((b) => [Number(b.dataset.site), b]));
  const NONE = "–";
  let active = null;
  let state = new Map();
  let event = null;

  const arm = () =>
    data.arms.find((a) =>
      ["task", "budget", "method", "seed"].every((name) => String(a.key[name]) === form.elements[name].value),
    );

  /** Maps sites to [rank, density, sites it shares with, components] after the events up to `position`. */
  const replay = (events, position) => {
    const found = new Map();
    for (const e of events.slice(0, position + 1)) {
      for (const [site, now] of Object.entries(e.sites)) found.set(Number(site), now);
    }
    return found;
  };

  const shown = (value) => {
    if (value === null || value === undefined) return NONE;
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    return Math.abs(value) >= 0.001 && Math.abs(value) < 1e6 ? value.toPrecision(4) : value.toExponential(3);
  };

  const facts = (site) => {
    const [rank, density, shared, components] = state.get(site) ?? [0, null, [], null];
    const score = event?.scores[site] ?? null;
    return { rank, density, shared, components, score };
  };

  const describe = (site) => {
    const f = facts(site);
    const others = f.shared.length ? `, shares with ${f.shared.map((i) => data.sites[i].name).join(", ")}` : "";
    const { name } = data.sites[site];
    return `${name}: rank ${f.rank}, density ${shown(f.density)}, score ${shown(f.score)}${others}`;
  };

  const write = (field, text, value) => {
    const place = details.querySelector(`[data-field="${field}"]`);
    // Allow line breaks after the dots of a long name.
    place.replaceChildren(...text.split(/(?<=\.)(?=\D)/).flatMap((part) => [part, document.createElement("wbr")]));
    if (value === null || value === undefined) delete place.dataset.value;
    else place.dataset.value = String(value);
  };

  const showDetails = () => {
    const missing = active === null || !event;
    const f = missing ? null : facts(active);
    write("name", missing ? NONE : data.sites[active].name, missing ? null : active);
    for (const name of ["rank", "density", "score"]) write(name, missing ? NONE : shown(f[name]), f?.[name]);
    const others = missing ? [] : f.shared;
    write("shared", others.length ? others.map((i) => data.sites[i].name).join(", ") : NONE, others.join(" ") || null);
    write("components", missing ? NONE : f.components === null ? "all" : f.components.join(", ") || "none");
    for (const [site, button] of buttons) {
      button.classList.toggle("active", site === active);
      button.classList.toggle("partner", others.includes(site));
    }
  };

  const showCell = (button, site) => {
    const f = facts(site);
    const [ground, ink] = data.colours[f.rank] ?? ["", ""];
    button.textContent = String(f.rank);
    button.style.backgroundColor = ground;
    button.style.color = ink;
    button.classList.toggle("dropped", f.rank === 0);
    button.classList.toggle("shared", f.shared.length > 0);
    button.setAttribute("aria-label", describe(site));
  };

  const showEvent = () => {
    const { events, steps, status: outcome } = arm();
    const slider = form.elements.event;
    const position = Number(slider.value);
    event = events[position] ?? null;
    grid.hidden = !event;
    slider.disabled = events.length < 2;
    status.replaceChildren();
    if (event) {
      const where = event.step === 0 ? "Before training" : `After step ${event.step} of ${steps}`;
      const head = document.createElement("b");
      head.textContent = `${where}, phase ${event.phase}`;
      const reason = event.reason ? `: ${event.reason}` : "";
      status.append(head, `${reason} (event ${position + 1} of ${events.length})`);
      slider.setAttribute("aria-valuetext", `${where}, phase ${event.phase}${reason}`);
    } else {
      const why = outcome === "done" ? "This method has no adapters of its own." : `This arm is not finished: ${outcome}`;
      status.append(why);
      slider.setAttribute("aria-valuetext", why);
    }
    state = replay(events, position);
    for (const [site, button] of buttons) showCell(button, site);
    showDetails();
  };

  /** Shows another arm at the same training step, or at its end if the slider was at the end. */
  const showArm = (atEnd) => {
    const { events } = arm();
    const slider = form.elements.event;
    const step = event?.step ?? 0;
    const last = Math.max(0, events.length - 1);
    const before = events.filter((e) => e.step <= step).length - 1;
    slider.max = String(last);
    slider.value = String(atEnd ? last : Math.max(0, before));
    showEvent();
  };

  const activate = (button) => {
    active = Number(button.dataset.site);
    for (const other of buttons.values()) other.tabIndex = other === button ? 0 : -1;
    showDetails();
  };

  /** Returns the next site in a direction, skipping empty cells; null at the edge. */
  const neighbour = (button, down, right) => {
    const rows = [...grid.tBodies[0].rows];
    const cell = button.closest("td");
    if (down && button[down > 0 ? "nextElementSibling" : "previousElementSibling"]) {
      return button[down > 0 ? "nextElementSibling" : "previousElementSibling"];
    }
    let row = rows.indexOf(cell.parentElement) + down;
    let column = cell.cellIndex + right;
    for (; rows[row] && column > 0 && rows[row].cells[column]; row += down, column += right) {
      const found = rows[row].cells[column].querySelectorAll(".site");
      if (found.length) return found[down < 0 ? found.length - 1 : 0];
    }
    return null;
  };

  grid.addEventListener("keydown", (pressed) => {
    const button = pressed.target.closest(".site");
    if (!button || pressed.altKey || pressed.ctrlKey || pressed.metaKey) return;
    const inRow = [...button.closest("tr").querySelectorAll(".site")];
    const targets = {
      ArrowUp: () => neighbour(button, -1, 0),
      ArrowDown: () => neighbour(button, 1, 0),
      ArrowLeft: () => neighbour(button, 0, -1),
      ArrowRight: () => neighbour(button, 0, 1),
      Home: () => inRow[0],
      End: () => inRow[inRow.length - 1],
    };
    if (!(pressed.key in targets)) return;
    pressed.preventDefault();
    targets[pressed.key]()?.focus();
  });
  for (const kind of ["focusin", "mouseover"]) {
    grid.addEventListener(kind, (e) => {
      const button = e.target.closest(".site");
      if (button) activate(button);
    });
  }
  form.addEventListener("submit", (e) => e.preventDefault());
  form.elements.event.addEventListener("input", showEvent);
  form.addEventListener("change", (e) => {
    if (e.target === form.elements.event) return;
    const slider = form.elements.event;
    showArm(slider.value === slider.max);
  });

  panel.hidden = false;
  activate(buttons.values().next().value);
  // Start with an arm whose ranks change, if there is one.
  const first = data.arms.find((a) => a.events.length > 1) ?? data.arms.find((a) => a.events.length);
  if (first) for (const name of ["task", "budget", "method", "seed"]) form.elements[name].value = String(first.key[name]);
  showArm(true);
})();

"use strict";
{
  const find = id => document.getElementById(id);
  const stored = (name, value) => {  // file:// pages of some browsers have no storage
    try {
      if (value === undefined) return localStorage.getItem(name);
      localStorage.setItem(name, value);
    } catch { }
    return null;
  };

  const root = document.documentElement;
  find("theme").addEventListener("click", () => {
    const wasDark = root.dataset.theme
      ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = wasDark ? "light" : "dark";
    stored("prl-theme", root.dataset.theme);
  });

  const list = find("suspects"), items = [...list.querySelectorAll(".item")];
  const search = find("find"), keys = find("keys"), status = find("status");
  const choices = ["given", "predicted"].map(find).filter(each => each);
  const tickOf = item => item.querySelector("input.mark");
  const isTicked = item => tickOf(item).checked;
  const shown = () => items.filter(item => !item.hidden);
  const ofThisPage = "prl-ticks-" + list.dataset.key;
  let current = items[0];

  const count = () => {
    const ticked = items.filter(isTicked).length;
    status.textContent = shown().length + " of " + items.length + " shown, " + ticked + " ticked";
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every(word => text.includes(word))
        || choices.some(choice => choice.value && item.dataset[choice.id] !== choice.value.slice(1));
    }
    count();
  };
  search.addEventListener("input", filter);
  for (const choice of choices) {
    const labels = [...new Set(items.map(item => item.dataset[choice.id]))];
    labels.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    for (const label of labels) choice.add(new Option(label || "(empty)", "=" + label));
    choice.addEventListener("change", filter);
  }

  const focus = item => {
    if (!item) return;
    current.tabIndex = -1;
    current = item;
    current.tabIndex = 0;
    current.focus();
    current.scrollIntoView({ block: "nearest" });
  };
  const go = step => {
    const all = shown(), at = all.indexOf(current);
    const isIn = current.contains(document.activeElement);
    focus(all[isIn && at >= 0 ? Math.min(Math.max(at + step, 0), all.length - 1) : Math.max(at, 0)]);
  };
  items.forEach((item, i) => { item.tabIndex = i ? -1 : 0; });
  list.addEventListener("focusin", event => {
    const item = event.target.closest(".item");
    if (!item) return;
    current.tabIndex = -1;
    current = item;
    current.tabIndex = 0;
  });

  const kept = new Set(JSON.parse(stored(ofThisPage) || "[]"));
  for (const item of items) {
    tickOf(item).checked = kept.has(item.dataset.id);
    tickOf(item).addEventListener("change", () => {
      stored(ofThisPage, JSON.stringify(items.filter(isTicked).map(each => each.dataset.id)));
      count();
    });
  }

  const byHand = text => {  // for a browser that lets no page write to the clipboard
    const area = document.createElement("textarea");
    area.value = text;
    area.setAttribute("aria-label", "Row numbers to copy");
    find("copy").after(area);
    area.select();
    if (document.execCommand("copy")) { area.remove(); find("copy").focus(); return true; }
    return false;
  };
  const copy = async () => {
    const ticked = items.filter(isTicked), chosen = ticked.length ? ticked : shown();
    const text = chosen.map(item => item.dataset.id).join("\n");
    let isDone = true;
    try { await navigator.clipboard.writeText(text); } catch { isDone = byHand(text); }
    const which = ticked.length ? "ticked" : "shown";
    status.textContent = isDone ? "Copied the " + chosen.length + " that are " + which + "."
      : "The browser does not let this page copy. Press Ctrl+C.";
  };
  find("copy").addEventListener("click", copy);

  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=search], select, textarea")) {
      if (event.key === "Escape") focus(shown()[0]);
      return;
    }
    const letters = {
      j: () => go(1), k: () => go(-1), c: copy, "/": () => search.focus(),
      x: () => { if (current && !current.hidden) tickOf(current).click(); },
    };
    const arrows = event.target.closest(".item") ? { ArrowDown: letters.j, ArrowUp: letters.k } : {};
    const action = arrows[event.key] || (keys.checked && letters[event.key]);
    if (action) { event.preventDefault(); action(); }
  });

  const table = list.querySelector("table.sortable");
  const valueOf = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const compare = (a, b) => {
    if (a !== "" && b !== "" && !isNaN(a) && !isNaN(b)) return a - b;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  if (table) for (const head of table.tHead.rows[0].cells) {
    if (!head.hasAttribute("aria-sort")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const each of table.querySelectorAll("th[aria-sort]")) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1, at = head.cellIndex;
      items.sort((a, b) => sign * compare(valueOf(a, at), valueOf(b, at)));
      table.tBodies[0].append(...items);
    });
  }
  count();
}


"use strict";
(() => {
  document.documentElement.classList.add("live");
  const list = document.querySelector(".photos");
  const photos = [...list.children];
  const tools = document.querySelector(".tools");

  // ---- the divider of a photo: one listener on the list serves all of them ----

  function divide(pair, percent) {
    const input = pair.querySelector(".divide");
    input.value = percent;
    const at = Number(input.value);
    pair.style.setProperty("--at", `${at}%`);
    input.setAttribute("aria-valuetext", `${at} percent before, ${100 - at} percent after`);
  }

  let drag = null;

  function follow(event) {
    const box = drag.pair.getBoundingClientRect();
    divide(drag.pair, ((event.clientX - box.left) / box.width) * 100);
  }

  list.addEventListener("pointerdown", (event) => {
    const pair = event.target.closest(".pair");
    if (!pair || event.button !== 0) return;
    drag = { pair, id: event.pointerId, start: pair.querySelector(".divide").value };
    pair.setPointerCapture(event.pointerId);
    pair.querySelector(".divide").focus({ preventScroll: true });
    // A finger may only want to scroll: its photo waits until it moves sideways or lifts.
    if (event.pointerType !== "touch") follow(event);
    event.preventDefault();
  });
  list.addEventListener("pointermove", (event) => {
    if (drag && drag.id === event.pointerId) follow(event);
  });
  list.addEventListener("pointerup", (event) => {
    if (!drag || drag.id !== event.pointerId) return;
    follow(event);
    drag = null;
  });
  list.addEventListener("pointercancel", (event) => {
    if (!drag || drag.id !== event.pointerId) return;
    divide(drag.pair, drag.start);
    drag = null;
  });
  list.addEventListener("input", (event) => {
    if (event.target.matches(".divide")) divide(event.target.closest(".pair"), event.target.value);
  });

  // ---- which photos are shown, and in which order ----

  if (!tools) return;
  tools.hidden = false;
  const choice = (name) => tools.elements[name];
  const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const orders = {
    number: (a, b) => a.dataset.number - b.dataset.number,
    name: (a, b) => names.compare(a.dataset.name, b.dataset.name),
    share: (a, b) => b.dataset.share - a.dataset.share,
    seconds: (a, b) => b.dataset.seconds - a.dataset.seconds,
  };

  function find() {
    const state = tools.querySelector("[name=state]:checked")?.value ?? "all";
    const name = choice("name").value.trim().toLowerCase();
    let shown = 0;
    for (const photo of photos) {
      const fits = state === "all" || photo.dataset.state === state || (state === "warned" && "warned" in photo.dataset);
      photo.hidden = !(fits && photo.dataset.name.toLowerCase().includes(name));
      shown += !photo.hidden;
    }
    tools.querySelector(".count").textContent = `${shown} of ${photos.length} shown`;
  }

  function sort() {
    photos.sort((a, b) => orders[choice("order").value](a, b) || orders.number(a, b));
    list.append(...photos);
  }

  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    const { name, checked } = event.target;
    if (name === "state" || name === "name") find();
    else if (name === "order") sort();
    else if (name === "large") list.classList.toggle("large", checked);
    else for (const box of list.querySelectorAll(`.show-${name}`)) box.checked = checked;
  });
})();

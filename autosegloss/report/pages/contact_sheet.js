const select = document.querySelector("select");
const cards = [...document.querySelectorAll("article")];
const rank = (card, key) => {
  const place = card.dataset.ranks.split(" ").find((place) => place.startsWith(key + ":"));
  return place ? Number(place.split(":")[1]) : -1;
};
function show() {
  const key = location.hash.slice(1);
  const one = [...select.options].some((option) => option.value === key) && key !== "worst";
  select.value = one ? key : "worst";
  for (const card of cards) {
    card.hidden = one && rank(card, key) < 0;
    const score = one && card.querySelector(`.places a[href="#${key}"] b`);
    card.querySelector("output").textContent = score ? score.textContent : "";
  }
  const order = one ? [...cards].sort((a, b) => rank(a, key) - rank(b, key)) : cards;
  document.querySelector("#cards").append(...order);
  for (const link of document.querySelectorAll(".places a")) {
    if (one && link.hash === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
select.addEventListener("change", () => { location.hash = select.value; });
addEventListener("hashchange", () => { show(); document.querySelector("#worst").scrollIntoView(); });
document.querySelector("#choose").hidden = false;
show();

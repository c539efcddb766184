// Definitions on hover and on focus, from the list at the page's end; without this they are titles, and links.
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);
let shown = null;
const hide = () => { tip.hidden = true; shown = null; };
const show = (link) => {
  shown = link;
  tip.textContent = link.dataset.tip;
  tip.hidden = false;
  const at = link.getBoundingClientRect(), wide = document.documentElement.clientWidth;
  const below = at.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = `${scrollX + Math.max(8, Math.min(at.left, wide - tip.offsetWidth - 8))}px`;
  tip.style.top = `${scrollY + (below ? at.bottom + 6 : at.top - tip.offsetHeight - 6)}px`;
};
for (const link of document.querySelectorAll("a.metric")) {
  const formula = document.querySelector(`${link.getAttribute("href")} .formula`);
  link.dataset.tip = [formula?.textContent, link.title].filter(Boolean).join("\n");
  link.removeAttribute("title");
  link.setAttribute("aria-describedby", "tip");
  link.addEventListener("mouseenter", () => show(link));
  link.addEventListener("focus", () => show(link));
  link.addEventListener("mouseleave", hide);
  link.addEventListener("blur", hide);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
// the page scrolls to bring what has the focus into view, and its definition with it
const follow = () => { if (shown && shown === document.activeElement) show(shown); else hide(); };
addEventListener("scroll", follow, { passive: true, capture: true });

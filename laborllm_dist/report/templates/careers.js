// One person and one model at a time; without script the page lists all of them. The address names the person.
const careers = [...document.querySelectorAll(".career")];
const picker = document.querySelector(".picker");
const [person, model, previous, next, status] = ["person", "model", "previous", "next", "status"].map((id) => document.getElementById(id));

function show(number) {
  const place = Math.min(Math.max(number, 1), careers.length) - 1;
  careers.forEach((career, each) => { career.hidden = each !== place; });
  person.value = String(place + 1);
  previous.disabled = place === 0;
  next.disabled = place === careers.length - 1;
  showModel();
  status.textContent = `${careers[place].querySelectorAll(".year").length} observations`;
}

function showModel() {
  for (const each of careers[person.selectedIndex].querySelectorAll(".prediction")) {
    each.hidden = model.value !== "all" && each.dataset.model !== model.value;
  }
}

function pick(number) {
  history.replaceState(null, "", `#person-${number}`);
  show(number);
}

const fromAddress = () => show(Number(location.hash.replace("#person-", "")) || 1);
picker.hidden = false;
document.querySelector(".people").hidden = true;
picker.addEventListener("submit", (event) => event.preventDefault());
person.addEventListener("change", () => pick(Number(person.value)));
model.addEventListener("change", showModel);
previous.addEventListener("click", () => pick(Number(person.value) - 1));
next.addEventListener("click", () => pick(Number(person.value) + 1));
addEventListener("hashchange", fromAddress);
fromAddress();

// Writes the pairs that were marked as harmless to a file. Nothing leaves this page.
(() => {
  const review = document.querySelector(".review");
  if (!review) return;
  const field = (name) => review.querySelector(`[name="${name}"]`);
  const button = review.querySelector("button");
  const marked = () => [...document.querySelectorAll(".accept input:checked")];
  const update = () => {
    const count = marked().length;
    const named = field("reviewer").value.trim() && field("reason").value.trim();
    button.disabled = !(count && named);
    button.textContent = `Save ${count} accepted ${count === 1 ? "pair" : "pairs"}`;
  };
  button.addEventListener("click", () => {
    const record = {
      format: "synthaug-accepted-pairs",
      format_version: 1,
      reviewer: field("reviewer").value.trim(),
      reason: field("reason").value.trim(),
      created: new Date().toISOString(),
      serve: field("serve").checked,
      pairs: marked().map((box) => JSON.parse(box.dataset.pair)),
    };
    const text = JSON.stringify(record, null, 1) + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "pairs.json";
    link.click();
    review.querySelector("output").textContent =
      "Saved as pairs.json. Repeat the audit with --accept pairs.json.";
  });
  document.addEventListener("input", update);
  document.documentElement.classList.add("reviewing");
  update();
})();

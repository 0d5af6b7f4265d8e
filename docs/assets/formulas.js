// Formulas that arithmatex has marked, by KaTeX from this site: nothing is fetched.
document$.subscribe(() => {
  for (const each of document.querySelectorAll(".arithmatex")) {
    const display = each.tagName === "DIV"
    const text = each.textContent.trim().replace(/^\\[[(]/, "").replace(/\\[\])]$/, "")
    katex.render(text, each, { displayMode: display, throwOnError: false })
  }
})

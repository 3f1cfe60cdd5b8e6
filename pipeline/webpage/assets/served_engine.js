// The engine is the server from which this page came. Its token, where it wants one, is kept in memory alone.

class ServedEngine {
  constructor(values) {
    this.values = values;
    this.token = null;
  }

  async start() {
    return { whole: true, text: "The server has verified its model by the golden pictures." };
  }

  // What the server says of a file; it decodes it. The picture that is shown is the file as the browser shows it.
  async answer(file, top) {
    const form = new FormData();
    form.append("pictures", file, file.name || "picture");
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const response = await fetch(`predict?top=${top}&heat_maps=${Boolean(this.values.heat_maps)}`, { method: "POST", body: form, headers }).catch(() => null);
    if (!response) throw new Error("The server does not answer; is it still there?");
    if (response.status === 401) {
      this.token = await askForToken(this.token !== null);
      return this.answer(file, top);
    }
    const said = await response.json().catch(() => ({}));
    if (response.status === 503) {
      throw new Error(`The server is busy; try again in ${response.headers.get("Retry-After") || "some"} seconds.`);
    }
    const found = said.pictures?.[0];
    if (!response.ok || found?.error) throw new Error(found?.error || said.error || `The server refuses (${response.status}).`);
    return { ...found, exact: true };
  }
}

function askForToken(again) {
  const dialog = document.getElementById("token");
  dialog.querySelector("p").textContent = again ? "That is not the token of this server." : "This server asks for a token.";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      const input = dialog.querySelector("input");
      const value = input.value.trim();
      input.value = "";
      if (dialog.returnValue === "send" && value) resolve(value);
      else reject(new Error("Without the token the server does not answer."));
    };
  });
}

const Engine = ServedEngine;

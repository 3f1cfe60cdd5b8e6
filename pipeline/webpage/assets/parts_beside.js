// The bytes of a part of this page: a file beside it.
async function part(name) {
  if (location.protocol === "file:") {
    throw new Error("it needs a web server; the page that `plumage page` writes without --folder opens from a file");
  }
  const file = values.files[name];
  const response = await fetch(file).catch(() => null);
  if (!response?.ok) throw new Error(`its file ${file} does not come (${response ? response.status : "no network"})`);
  return new Uint8Array(await response.arrayBuffer());
}

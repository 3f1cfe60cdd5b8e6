// The bytes of a part of this page: base64 of gzip, within the file.
async function part(name) {
  const element = document.getElementById(name);
  const packed = new Blob([bytes64(element.textContent.trim())]);
  element.remove();
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

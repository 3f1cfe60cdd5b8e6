// A service worker stores the files of this page, so that it opens without a network and can be installed.
ready.then(async (good) => {
  if (!good || !navigator.serviceWorker) return; // not over plain http, but for this machine's own
  const registration = await navigator.serviceWorker.register("service-worker.js");
  registration.update().catch(() => null); // without a network there is no newer version to be had
  await navigator.serviceWorker.ready;
  state.textContent += " Stored on this device: from now on it opens without a network.";
  document.body.dataset.stored = "yes";
});

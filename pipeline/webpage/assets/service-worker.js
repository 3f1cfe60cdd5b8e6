// Stores the files of one version of the page, all of them or none, and answers from the store.
"use strict";
const FILES = {{ files }};
const OF_THIS_PAGE = `plumage page ${self.registration.scope} `; // another page of this origin has its own
const VERSION = OF_THIS_PAGE + "{{ version }}";

self.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const store = await caches.open(VERSION);
    await store.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
    await self.skipWaiting(); // who has the page open has loaded it, and goes on with it
  })());
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const names = await caches.keys();
    const earlier = names.filter((name) => name.startsWith(OF_THIS_PAGE) && name !== VERSION);
    await Promise.all(earlier.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  const wanted = event.request.mode === "navigate" ? "./" : event.request; // also index.html, and with a query
  const stored = caches.open(VERSION).then((store) => store.match(wanted));
  event.respondWith(stored.then((found) => found ?? fetch(event.request)));
});

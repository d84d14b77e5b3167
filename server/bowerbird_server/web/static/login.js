// The address printed at start may carry the token behind "#", which browsers never send: it saves the typing.
const found = /^#token=(.+)$/.exec(location.hash);
if (found) {
  document.getElementById("token").value = decodeURIComponent(found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}

"""The live front: HTTP, WebRTC, WebSocket, sessions, admission, metrics, the page. It talks to a running pipeline only
through its face, and touches no tensors."""

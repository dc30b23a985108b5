//! What stands between the network and the gateway: TLS, bounds, slow callers, pages of other
//! sites. Every connection is a real socket.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod world;

mod bounds;
mod browsers;
mod http2;
mod leaving;
mod stops;
mod tls;

//! The dispatcher's rules, each as a law on a small world.

mod choice;
mod failures;
mod fallback;
mod limits;
mod order;
mod outlook;
mod outages;
mod queues;
mod quota;
mod world;

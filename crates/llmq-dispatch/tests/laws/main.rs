//! The dispatcher's rules, each as a law on a small world.

mod choice;
mod failures;
mod fallback;
mod limits;
mod order;
mod outages;
mod outlook;
mod queues;
mod quota;
mod world;
